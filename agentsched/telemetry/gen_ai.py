"""The metrics of OpenTelemetry's conventions for generative AI, taken from ended spans.

`gen_ai.server.*` is what agents see of us: our wait is in it. `gen_ai.client.*` is what we see of
an engine, from the moment that we sent a step there. Chunks are not counted, so there is no
`time_per_output_chunk`; programs have no name, so there is no `gen_ai.workflow.duration`.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry

from agentsched.model import RejectReason, between, in_seconds
from agentsched.telemetry.counters import OTHER, Bounded, LabelledTimes
from agentsched.telemetry.span import Span

_SECONDS: Final = tuple(0.01 * 2**i for i in range(14))
_TOKENS: Final = tuple(4**i for i in range(14))
_FIRST_TOKEN: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0, 120.0),
)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_LONG: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0)
_CALLS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOOLS_MAX: Final = 50
_MODELS_MAX: Final = 32


class GenAiMeters:
    """Histograms of calls, agents and tools; models and tools beyond the first few are `other`."""

    def __init__(self, registry: CollectorRegistry, *, provider: str) -> None:
        self._provider = provider
        self._models = Bounded(_MODELS_MAX)
        self._tools = Bounded(_TOOLS_MAX)
        call = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"]

        def times(
            name: str, text: str, labels: list[str], buckets: tuple[float, ...]
        ) -> LabelledTimes:
            return LabelledTimes(f"gen_ai_{name}", text, labels, buckets=buckets, registry=registry)

        self._usage = times(
            "client_token_usage", "Tokens of a call.", [*call, "gen_ai_token_type"], _TOKENS
        )
        self._operation = times(
            "client_operation_duration_seconds",
            "From sending a call to an engine to the end of its answer.",
            [*call, "error_type"],
            _SECONDS,
        )
        self._first_chunk = times(
            "client_operation_time_to_first_chunk_seconds",
            "From sending a call to an engine to its first token.",
            call,
            _FIRST_TOKEN,
        )
        self._request = times(
            "server_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            [*call, "error_type"],
            _SECONDS,
        )
        self._first_token = times(
            "server_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            call,
            _FIRST_TOKEN,
        )
        self._per_token = times(
            "server_time_per_output_token_seconds",
            "Between two tokens, after the first.",
            call,
            _PER_TOKEN,
        )
        agent = ["gen_ai_provider_name"]
        text = "From a program's first request to its last answer."
        self._agent = times("invoke_agent_duration_seconds", text, agent, _LONG)
        text = "LLM calls of a program."
        self._inferences = times("invoke_agent_inference_calls", text, agent, _CALLS)
        text = "Tool calls of a program."
        self._tool_calls = times("invoke_agent_tool_calls", text, agent, _CALLS)
        self._tool = times(
            "execute_tool_duration_seconds",
            "A tool's own time where it is reported, else until the request with its result.",
            ["gen_ai_tool_name", "error_type"],
            _LONG,
        )

    def observe(self, span: Span) -> None:
        """Count a span that has ended."""
        assert span.end is not None
        took = in_seconds(between(span.begin, span.end))
        match span.attributes["gen_ai.operation.name"]:
            case "chat":
                self._chat(span, took)
            case "execute_tool":
                name = self._tools(str(span.attributes["gen_ai.tool.name"]))
                self._tool.observe((name, span.error), took)
            case _ if "agentsched.inference_calls" in span.attributes:
                self._program(span, took)

    def _program(self, span: Span, took: float) -> None:
        labels = (self._provider,)
        self._agent.observe(labels, took)
        self._inferences.observe(labels, float(span.attributes["agentsched.inference_calls"]))  # type: ignore[arg-type]
        self._tool_calls.observe(labels, float(span.attributes["agentsched.tool_calls"]))  # type: ignore[arg-type]

    def _chat(self, span: Span, took: float) -> None:
        said = span.attributes
        # Of models that nobody serves clients make up as many as they like.
        is_made_up = span.error == RejectReason.UNKNOWN_MODEL.value
        model = OTHER if is_made_up else self._models(str(said.get("gen_ai.request.model", "")))
        call = ("chat", self._provider, model)
        self._request.observe((*call, span.error), took)
        waited = said.get("agentsched.wait")
        if not isinstance(waited, float):
            return  # it never went to an engine
        self._operation.observe((*call, span.error), took - waited)
        first = said.get("gen_ai.response.time_to_first_chunk")
        if isinstance(first, float):
            self._first_chunk.observe(call, first)
            self._first_token.observe(call, waited + first)
        if span.error:
            return
        output = said.get("gen_ai.usage.output_tokens", 0)
        self._usage.observe((*call, "input"), said.get("gen_ai.usage.input_tokens", 0))  # type: ignore[arg-type]
        self._usage.observe((*call, "output"), output)  # type: ignore[arg-type]
        if isinstance(first, float) and isinstance(output, int) and output > 1:
            self._per_token.observe(call, (took - waited - first) / (output - 1))
