"""What retention policies cost in computed tokens, against the clairvoyant optimum."""
