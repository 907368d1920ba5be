"""Spans as a projection of the journal."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from shorthand import arrived, at, finished, reported, tool_call

from agentsched.compose import SchedulerConfig, build_scheduler
from agentsched.model import (
    SECOND,
    CallId,
    Capabilities,
    ConversationId,
    EngineId,
    EngineLost,
    Event,
    Instant,
    Limits,
    Lineage,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepClass,
    StepFailed,
    StepId,
    StepStarted,
    TimerFired,
    ToolFinished,
    ToolName,
    ToolStarted,
    seconds,
)
from agentsched.telemetry.context import is_chosen, read_traceparent, trace_of
from agentsched.telemetry.gen_ai import GenAiMeters
from agentsched.telemetry.notes import CURRENT, Notes
from agentsched.telemetry.span import Span
from agentsched.telemetry.spans import SpanSink


class Bench:
    """A scheduler whose journal becomes spans."""

    def __init__(self, **given: Any) -> None:
        self.scheduler = build_scheduler(
            SchedulerConfig(profile="fcfs", limits=Limits(program_idle_ns_max=seconds(100)))
        )
        self.notes = Notes()
        self.spans: list[Span] = []
        self.sink = SpanSink(
            self.scheduler,
            self.notes,
            self.spans.append,
            provider="vllm",
            random=Random(1),
            **given,
        )
        self.at = 0.0
        self.feed(reported("e0"))

    @property
    def now(self) -> Instant:
        return at(self.at)

    def feed(self, event: Event, *, after_s: float = 0.0) -> None:
        self.at += after_s
        self.scheduler.handle(event, now=self.now)
        assert self.scheduler.latest is not None
        self.sink.write(self.scheduler.latest)

    def step(self, name: str, program: str = "p", *, traceparent: str = "", **more: Any) -> None:
        """A step that arrives now."""
        self.notes.add(
            StepId(name),
            ProgramId(program),
            request_id=f"r-{name}",
            headers={"traceparent": traceparent} if traceparent else {},
        )
        more.setdefault("conversation", f"{program}#0")
        self.feed(arrived(name, program, model="m", **more))

    def finish(self, name: str, *calls: str, after_s: float = 1.0) -> None:
        made = (tool_call(call, "Bash ls") for call in calls)
        self.feed(finished(name, *made, prompt=10, cached=4, output=3), after_s=after_s)
        self.notes.drop(StepId(name))

    def close(self, program: str = "p") -> None:
        self.feed(ProgramClosed(program=ProgramId(program), reason="over"))

    def named(self, start: str) -> list[Span]:
        return [span for span in self.spans if span.name.startswith(start)]


def took(span: Span) -> float:
    assert span.end is not None
    return (span.end - span.begin) / SECOND


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestTools:
    def test_until_the_result_comes(self, bench: Bench) -> None:
        bench.step("a")
        bench.finish("a", "c1")
        bench.at += 4
        bench.step("b", answers=(CallId("c1"),))
        [tool] = bench.named("execute_tool Bash")
        assert took(tool) == 4
        assert tool.attributes["agentsched.tool.is_reported"] is False

    def test_its_own_time_where_it_is_reported(self, bench: Bench) -> None:
        bench.step("a")
        bench.finish("a", "c1", "c2")
        names = {"program": ProgramId("p"), "tool": ToolName("Bash ls")}
        bench.feed(ToolStarted(call_id=CallId("c1"), **names), after_s=1)
        bench.feed(ToolFinished(call_id=CallId("c1"), is_error=True, **names), after_s=2)
        bench.feed(ToolFinished(call_id=CallId("c2"), took=seconds(0.5), **names), after_s=1)
        first, second = bench.named("execute_tool")
        assert (took(first), took(second)) == (2, 0.5)
        assert (first.error, second.error) == ("tool_error", "")
        assert first.attributes["agentsched.tool.is_reported"] is True

    def test_a_late_or_repeated_report_is_no_second_tool(self, bench: Bench) -> None:
        names = {"program": ProgramId("p"), "tool": ToolName("Bash ls")}
        bench.step("a")
        bench.finish("a", "c1", "c2")
        for _ in range(2):
            bench.feed(ToolFinished(call_id=CallId("c2"), took=seconds(0.5), **names), after_s=1)
        bench.step("b", answers=(CallId("c1"), CallId("c2")))
        bench.feed(ToolStarted(call_id=CallId("c1"), **names), after_s=0.1)
        bench.feed(ToolFinished(call_id=CallId("c1"), took=seconds(1), **names))
        bench.finish("b")
        bench.close()
        assert len(bench.named("execute_tool")) == 2
        [agent] = bench.named("invoke_agent")
        assert agent.attributes["agentsched.tool_calls"] == 2

    def test_a_call_that_the_next_answer_numbers_alike_is_another_tool(self, bench: Bench) -> None:
        for name, answers in (("a", ()), ("b", (CallId("c"),)), ("c", (CallId("c"),))):
            bench.step(name, answers=answers)
            bench.finish(name, "c")
        bench.close()
        errors = [tool.error for tool in bench.named("execute_tool")]
        assert errors == ["", "", "abandoned"]

    def test_a_tool_without_a_call_may_run_again(self, bench: Bench) -> None:
        names = {"program": ProgramId("p"), "tool": ToolName("index")}
        bench.step("a")
        bench.finish("a")
        for _ in range(2):
            bench.feed(ToolFinished(call_id=CallId("report:index"), **names), after_s=1)
        assert len(bench.named("execute_tool")) == 2

    def test_few_calls_that_ended_are_remembered(self, bench: Bench) -> None:
        names = {"program": ProgramId("p"), "tool": ToolName("Bash ls")}
        bench.step("a")
        bench.finish("a")
        for number in (*range(1_000), 999, 0):
            bench.feed(ToolFinished(call_id=CallId(f"c{number}"), **names))
        assert len(bench.named("execute_tool")) == 1_001  # the first of them is as a new one

    def test_one_that_never_comes_back_ends_with_its_program(self, bench: Bench) -> None:
        bench.step("a")
        bench.finish("a", "c1")
        bench.close()
        [tool] = bench.named("execute_tool")
        assert tool.error == "abandoned"


class TestSubAgents:
    def test_inside_a_program_is_below_its_parent(self, bench: Bench) -> None:
        bench.step("a")
        bench.step(
            "b",
            conversation=ConversationId("p#1"),
            lineage=Lineage.SPAWNED,
            parent_conversation=ConversationId("p#0"),
            agent="explorer",
        )
        bench.finish("b")
        bench.finish("a")
        bench.close()
        sub, agent = bench.named("invoke_agent")
        assert sub.name == "invoke_agent explorer"
        assert sub.parent == agent.context
        assert {s.context.trace_id for s in bench.spans} == {agent.context.trace_id}
        below = {s.attributes["agentsched.step.id"]: s.parent for s in bench.named("chat")}
        assert below == {"a": agent.context, "b": sub.context}

    def test_a_program_of_its_own_links_to_its_parent(self, bench: Bench) -> None:
        bench.step("a", "parent")
        bench.step("b", "child", parent=ProgramId("parent"))
        bench.finish("b")
        bench.finish("a")
        bench.close("child")
        bench.close("parent")
        child, parent = bench.named("invoke_agent")
        assert child.context.trace_id != parent.context.trace_id
        assert child.links == [parent.context]


class TestSteps:
    def test_a_failure_tells_no_texts(self, bench: Bench) -> None:
        bench.step("a")
        bench.feed(StepFailed(step=StepId("a"), reason="bad prompt: fix my secret"))
        bench.step("b")
        bench.feed(StepFailed(step=StepId("b"), reason="status 503"))
        first, second = bench.named("chat")
        assert (first.error, second.error) == ("engine_error", "503")
        assert "secret" not in repr(bench.spans)

    def test_another_try_is_an_event(self, bench: Bench) -> None:
        bench.step("a")
        bench.feed(StepFailed(step=StepId("a"), reason="reset", is_retryable=True))
        bench.finish("a")
        [chat] = bench.named("chat")
        events = [event.name for event in chat.events]
        assert events == ["agentsched.dispatch", "agentsched.retry", "agentsched.dispatch"]
        assert chat.error == ""

    def test_one_that_makes_way_is_no_error(self, bench: Bench) -> None:
        bench.feed(replace(reported("e0"), capabilities=Capabilities(running_max=1)))
        bench.feed(arrived("batch", "b", step_class=StepClass.BATCH))
        bench.feed(arrived("s", "a"), after_s=1)
        bench.feed(StepFailed(step=StepId("batch"), reason="other work came", is_retryable=True))
        bench.feed(finished("s"))
        bench.feed(finished("batch"))
        chat = bench.named("chat")[-1]
        events = [event.name for event in chat.events]
        assert events == ["agentsched.dispatch", "agentsched.yield", "agentsched.dispatch"]

    def test_a_try_that_came_to_nothing_had_no_first_token(self, bench: Bench) -> None:
        bench.step("a")
        bench.feed(StepStarted(step=StepId("a")), after_s=2)
        bench.feed(StepFailed(step=StepId("a"), reason="reset", is_retryable=True))
        bench.finish("a", after_s=3)
        [chat] = bench.named("chat")
        assert "gen_ai.response.time_to_first_chunk" not in chat.attributes

    def test_what_is_held_again_is_at_no_engine(self, bench: Bench) -> None:
        bench.step("a")
        bench.feed(EngineLost(engine=EngineId("e0"), reason="gone"), after_s=1)
        bench.feed(StepFailed(step=StepId("a"), reason="e0 was lost", is_retryable=True))
        bench.feed(StepCancelled(step=StepId("a"), reason="client"), after_s=30)
        [chat] = bench.named("chat")
        registry = CollectorRegistry()
        GenAiMeters(registry, provider="vllm").observe(chat)
        told = generate_latest(registry).decode()
        assert "server_request_duration_seconds_count{" in told
        assert "client_operation_duration_seconds_count{" not in told

    def test_its_times(self, bench: Bench) -> None:
        bench.step("a")
        bench.feed(StepStarted(step=StepId("a")), after_s=2)
        bench.finish("a", after_s=3)
        [chat] = bench.named("chat")
        assert took(chat) == 5
        assert chat.attributes["gen_ai.response.time_to_first_chunk"] == 2.0
        assert chat.attributes["gen_ai.usage.cache_read.input_tokens"] == 4

    def test_a_rejected_one_ends(self, bench: Bench) -> None:
        bench.feed(EngineLost(engine=EngineId("e0"), reason="gone"))
        bench.step("a")
        bench.feed(TimerFired(), after_s=3_600)
        assert [chat.error for chat in bench.named("chat")] == ["no_engine"]


class TestTraces:
    def test_of_a_program_are_the_same_everywhere(self) -> None:
        one, other = Bench(), Bench()
        for bench in (one, other):
            bench.step("a")
            bench.finish("a")
        assert one.spans[0].context.trace_id == other.spans[0].context.trace_id == trace_of("p")

    def test_the_sample_is_of_whole_programs(self) -> None:
        bench = Bench(sample=0.5)
        for i in range(200):
            bench.step(f"a{i}", f"p{i}")
            bench.step(f"b{i}", f"c{i}", parent=ProgramId(f"p{i}"))
            bench.finish(f"b{i}")
            bench.finish(f"a{i}")
            bench.close(f"c{i}")
            bench.close(f"p{i}")
        agents = bench.named("invoke_agent")
        chosen = {s.attributes["gen_ai.agent.id"]: s.context.is_sampled for s in agents}
        assert 60 < sum(chosen[f"p{i}"] for i in range(200)) < 140
        assert all(chosen[f"c{i}"] == chosen[f"p{i}"] for i in range(200))

    def test_engines_are_told_of_our_span(self, bench: Bench) -> None:
        bench.step("a")
        signed = dict(bench.notes.sign(StepId("a"), [("Traceparent", "x"), ("a", "b")]))
        assert set(signed) == {"traceparent", "a"}
        ours = read_traceparent(signed["traceparent"])
        bench.finish("a")
        assert ours == bench.named("chat")[0].context

    def test_nobody_is_told_when_nothing_is_exported(self) -> None:
        bench = Bench(is_exported=False)
        bench.step("a")
        assert bench.notes.sign(StepId("a"), [("traceparent", "x")]) == [("traceparent", "x")]

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "00-0-0-01",
            f"00-{'0' * 32}-{'1' * 16}-01",
            f"00-{'1' * 32}-{'0' * 16}-01",
            f"ff-{'1' * 32}-{'1' * 16}-01",
            f"00-{'1' * 32}-{'1' * 16}-01-more",
            f"00-{'G' * 32}-{'1' * 16}-01",
            "x" * 10_000,
        ],
    )
    def test_nonsense_is_none(self, value: str) -> None:
        assert read_traceparent(value) is None

    def test_later_versions_are_read(self) -> None:
        found = read_traceparent(f"01-{'1' * 32}-{'2' * 16}-03-more")
        assert found is not None
        assert found.is_sampled
        assert found.header() == f"00-{'1' * 32}-{'2' * 16}-01"

    def test_all_and_none(self) -> None:
        traces = [trace_of(str(i)) for i in range(100)]
        assert all(is_chosen(trace, 1.0) for trace in traces)
        assert not any(is_chosen(trace, 0.0) for trace in traces)


class TestMemory:
    def test_programs_are_bounded(self) -> None:
        bench = Bench(programs_max=10)
        for i in range(50):
            bench.step(f"s{i}", f"p{i}")
            bench.finish(f"s{i}")
        assert bench.sink.open_programs == 10
        assert len(bench.named("invoke_agent")) == 40

    def test_forgotten_programs_end(self, bench: Bench) -> None:
        bench.step("a")
        bench.finish("a")
        bench.at += 200  # longer than an idle program is kept
        for _ in range(2):
            bench.feed(TimerFired())
        assert bench.sink.open_programs == 0
        assert took(bench.named("invoke_agent")[0]) == 1  # to its last answer

    @pytest.mark.parametrize("is_at_work", [False, True], ids=["reports", "is at work"])
    def test_one_that_lives_on_keeps_nobody_back(self, bench: Bench, is_at_work: bool) -> None:
        names = {"program": ProgramId("long"), "call_id": CallId("c"), "tool": ToolName("make")}
        bench.step("a", "long")
        if not is_at_work:
            bench.finish("a", "c")
        bench.step("b", "short")
        bench.finish("b")
        for _ in range(4):
            bench.feed(TimerFired() if is_at_work else ToolStarted(**names), after_s=50)
        for _ in range(2):
            bench.feed(TimerFired())
        assert ProgramId("short") not in bench.scheduler.programs
        assert ProgramId("long") in bench.scheduler.programs
        assert [s.attributes["gen_ai.agent.id"] for s in bench.named("invoke_agent")] == ["short"]

    def test_notes_end_with_their_requests(self, bench: Bench) -> None:
        bench.step("a")
        assert CURRENT.get() is not None
        bench.finish("a")
        assert len(bench.notes) == 0
        assert CURRENT.get() is None

    def test_the_end_of_the_process_ends_all(self, bench: Bench) -> None:
        bench.step("a")
        bench.sink.close(bench.now)
        assert [span.error for span in bench.spans] == ["shutdown", ""]
        assert bench.sink.open_programs == 0
