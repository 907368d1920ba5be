"""Reference pages drawn from the code: commands, metrics and the control plane's HTTP.

python -m agentsched_bench.reference          # draws all of them into docs/reference
python -m agentsched_bench.reference --check  # only says which are out of date
"""
