"""Trust, tried: the whole proxy on virtual time with faults from a seed, and under overload."""
