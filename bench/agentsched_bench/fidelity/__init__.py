"""How far the simulator is from a real engine: the same load measured and predicted."""
