"""Fitting the engine model to an engine that runs, or to a journal of one that ran."""
