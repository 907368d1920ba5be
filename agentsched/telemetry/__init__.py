"""Projections of the journal for people and machines that watch."""
