"""Published results done again, as far as set-ups are published, with ours beside them."""
