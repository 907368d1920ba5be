"""Names that users may rely on. Taking one away is a breaking change: it needs a major version."""

from __future__ import annotations

import importlib

import pytest

STABLE = {
    "agentsched": """
        AgentschedError Program __version__ agent_step anthropic async_anthropic
        async_httpx_hooks async_openai carry configure current_headers current_program
        current_step declared_workflow httpx_hooks openai program tool_call with_headers
    """,
    "agentsched.model": """
        AgentschedError CallId Cancel CancelReason Capabilities Choice Command ConfigError
        ConversationId ContinuedElsewhere Dispatch EngineDrained EngineError EngineId EngineLoad
        EngineLost EngineRefused EngineReported EngineTimeout EngineUnanswered
        EngineUnreachable Event
        HintAnswered HintOutcome Instant Limits Lineage MILLISECOND MINUTE Nanos PeerReported
        Pin PinId PolicyError Prefetch Prefix PrefixId ProgramClosed ProgramId ProgramOpened
        Reconfigured Reject RejectReason SECOND ServedElsewhere StepArrived StepCancelled
        StepClass StepFailed StepFinished StepId StepStarted StepState TenantConfigured TenantId
        TenantLimits TimerFired ToolCall ToolFinished ToolName ToolStarted Unpin UnpinReason
        Usage WireError WorkflowDeclared after between in_seconds parse_span seconds
    """,
    "agentsched.policy": """
        Admission AdmitPolicy Admitted Choice ConversationView EngineView GraphView Held
        OrderPolicy PauseView PinPolicy PlacePolicy Policy PolicySet PrefetchPolicy Prices
        Profile ProgramView Retention ReturnView SharePolicy SortKey StepView TenantView
        TurnedAway World available available_profiles load load_profile
    """,
}


@pytest.mark.parametrize("module", STABLE)
def test_stable_names(module: str) -> None:
    imported = importlib.import_module(module)
    assert set(imported.__all__) == set(STABLE[module].split())
    for name in imported.__all__:
        assert getattr(imported, name) is not None
        assert name in dir(imported)


def test_unknown_name() -> None:
    agentsched = importlib.import_module("agentsched")
    with pytest.raises(AttributeError, match="no attribute 'agent_stop'"):
        _ = agentsched.agent_stop


def test_lazy_names_are_the_real_ones() -> None:
    agentsched = importlib.import_module("agentsched")
    assert agentsched.AgentschedError is importlib.import_module("agentsched.model").AgentschedError
