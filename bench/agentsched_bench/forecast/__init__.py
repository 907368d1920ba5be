"""How good the forecasts are, on recorded programs that they were not learnt from."""
