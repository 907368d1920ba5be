#!/usr/bin/env bash
# What would it change for my agents? Takes a trace; makes a synthetic one where none is given.
set -euo pipefail
TRACE=${1:-}
if [ -z "$TRACE" ]; then
  TRACE=$(mktemp -d)/trace.jsonl
  agentsched trace generate --programs 12 --out "$TRACE"
fi
agentsched trace stats "$TRACE"
agentsched simulate "$TRACE" --profile direct --profile agentsched --profile unlimited \
    --preset h100-8b --blocks 800 --arrivals poisson:1/s
