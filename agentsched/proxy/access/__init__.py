"""Who asks, and what they may: keys, tokens, sessions, tenants, and what protects connections."""
