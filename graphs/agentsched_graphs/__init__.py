"""Execution graphs and forecasts: what a program did, and what it will do next. Pure."""
