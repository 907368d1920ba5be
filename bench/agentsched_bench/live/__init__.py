"""Live replay: recorded programs as load on any OpenAI-compatible endpoint, and what came of it."""
