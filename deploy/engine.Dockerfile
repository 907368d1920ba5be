# syntax=docker/dockerfile:1
# vLLM with the plugin inside (docs/plugin.md): retention for real, and program order in its queue.
#   docker build -f deploy/engine.Dockerfile -t agentsched-vllm .
# The plugin refuses versions of vLLM that it was not tested with; docs/plugin.md names them.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
FROM ${VLLM_IMAGE}
COPY pyproject.toml README.md LICENSE /src/
COPY agentsched /src/agentsched
COPY graphs /src/graphs
COPY policies /src/policies
COPY adapters /src/adapters
COPY bench /src/bench
# Its only requirements, msgspec and networkx, are there already: vLLM brings them.
RUN python3 -m pip install --no-cache-dir --no-deps /src && rm -rf /src
ENV VLLM_PLUGINS=agentsched \
    AGENTSCHED_PLUGIN=1
