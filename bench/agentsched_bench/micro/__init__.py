"""Costs of single parts, measured alone: `python -m agentsched_bench.micro`."""
