"""The OpenAI-compatible data plane and the live host of the scheduler."""
