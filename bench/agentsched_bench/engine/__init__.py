"""The embedded engine: a sans-I/O model of one vLLM engine, and an HTTP server over it."""
