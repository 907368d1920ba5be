"""Adapters for agent frameworks: their own ids name the program, their tools are reported.

Each imports its framework when it is imported itself, and nothing else of `agentsched` imports one.
"""
