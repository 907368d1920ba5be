"""Sweeps over policies' parameters, judged on programs that they were not chosen on."""
