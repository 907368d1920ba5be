"""The simulator: recorded programs under any policies, on modelled engines, in virtual time."""
