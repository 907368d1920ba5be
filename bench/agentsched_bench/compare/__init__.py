"""Several arms on the same programs in one run, and what may be concluded from it."""
