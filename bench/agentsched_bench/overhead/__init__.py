"""What a proxy costs: CPU per request, added latency and memory, beside its peers in one run."""
