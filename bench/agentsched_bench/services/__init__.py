"""Real servers on this machine, private and short-lived, for tests and measurements."""
