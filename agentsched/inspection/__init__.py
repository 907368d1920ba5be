"""Commands that look inside a running proxy or at an engine; they change nothing."""
