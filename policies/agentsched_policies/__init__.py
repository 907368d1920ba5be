"""Built-in decisions: one file, one policy. They load by entry point, as a stranger's do."""
