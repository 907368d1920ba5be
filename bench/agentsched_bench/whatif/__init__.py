"""What would have happened under another policy: answered from a journal."""
