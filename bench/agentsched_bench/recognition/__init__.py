"""How well the proxy tells programs apart, measured on recorded programs that run at once."""
