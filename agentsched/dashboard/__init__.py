"""The dashboard: live views of one proxy for browsers and terminals, over one feed of changes."""
