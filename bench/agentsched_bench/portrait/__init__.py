"""A recorded program replayed with its tool calls and sub-agents, to look at its graph."""
