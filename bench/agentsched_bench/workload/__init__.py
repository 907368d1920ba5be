"""Recorded programs: the trace format, its checks and figures, and the plans made from it."""
