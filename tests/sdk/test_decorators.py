"""What agents' code says about itself, and that it leaks nowhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any
from uuid import UUID

import pytest

import agentsched
from agentsched import (
    agent_step,
    carry,
    current_headers,
    current_program,
    current_step,
    declared_workflow,
    program,
    tool_call,
)
from agentsched_graphs.workflow import read_workflow


class TestProgram:
    def test_names_its_calls(self) -> None:
        with program(id="p1", tenant="team-a", agent="fixer", deadline_s=60) as opened:
            assert current_program() is opened
            headers = current_headers()
            assert float(headers.pop("x-agentsched-deadline")) == pytest.approx(60, abs=1)
            assert headers == {
                "x-agentsched-program": "p1",
                "x-agentsched-tenant": "team-a",
                "x-agentsched-agent": "fixer",
            }
        assert current_program() is None
        assert current_headers() == {}

    def test_one_inside_another_is_its_child(self) -> None:
        with (
            program(id="outer", tenant="t", deadline_s=10),
            program(agent="child", deadline_s=99) as inner,
        ):
            assert inner.parent == "outer"
            assert inner.tenant == "t"
            assert inner.id.startswith("sdk-")
            assert inner.deadline_s is not None
            assert inner.deadline_s <= 10

    def test_a_passed_deadline_is_not_below_nothing(self) -> None:
        with program(deadline_s=-5) as late:
            assert late.deadline_s == 0.001

    async def test_tasks_carry_it_and_keep_theirs(self) -> None:
        async def work(name: str) -> tuple[str, str | None]:
            async with program(id=name) as mine:
                await asyncio.sleep(0)
                inner = await asyncio.to_thread(lambda: current_program())
                assert inner is mine
                return mine.id, mine.parent

        async with program(id="outer"):
            both = await asyncio.gather(work("a"), work("b"))
            assert current_headers()["x-agentsched-program"] == "outer"
        assert both == [("a", "outer"), ("b", "outer")]

    def test_threads_get_it_by_carry(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            with program(id="p") as mine:
                assert pool.submit(current_program).result() is None
                carried = carry(current_program)
                found = [pool.submit(carried) for _ in range(20)]
                assert {f.result() for f in found} == {mine}
            assert pool.submit(current_program).result() is None

    async def test_a_decorator_opens_one_for_each_call(self) -> None:
        @program(agent="reviewer")
        async def review() -> str:
            mine = current_program()
            assert mine is not None
            return mine.id

        first, second = await asyncio.gather(review(), review())
        assert first != second

    def test_inside_itself_it_ends_once(self, inbox: Any) -> None:
        @program(id="p")
        def work(depth: int) -> None:
            if depth:
                work(depth - 1)
                with tool_call("bash"):
                    pass

        work(1)
        assert [e["event"] for e in inbox.events(3)] == ["started", "finished", "closed"]
        with program(id="other"):
            pass
        assert inbox.events(1) == [{"event": "closed", "program": "other"}]

    def test_further_inside_itself_it_ends_with_the_outer_one(self, inbox: Any) -> None:
        with program(id="a", tenant="red"), program(id="b"), program(id="a") as again:
            headers = current_headers()
            assert again.tenant == "red"
        assert headers == {"x-agentsched-program": "a", "x-agentsched-tenant": "red"}
        assert [e["program"] for e in inbox.events(2)] == ["b", "a"]
        with program(id="other"):
            pass
        assert [e["program"] for e in inbox.events(1)] == ["other"]

    def test_a_block_that_follows_at_once_is_not_ended_by_the_one_before(
        self, inbox: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A chat's turns: word of the first one's end would come when the second has begun."""

        def refused(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as held:  # nothing goes out as yet
            held.setattr(threading.Thread, "start", refused)
            for tenant in ("red", "blue"):
                with program(id="chat", tenant=tenant), tool_call("bash"):
                    pass
        with program(id="chat", tenant="blue"), tool_call("edit"):
            pass
        told = [(e["event"], e.get("tool")) for e in inbox.events(8)]
        tools = [("started", "bash"), ("finished", "bash")]
        more = [("started", "edit"), ("finished", "edit")]
        # Another tenant's program of that name is another one.
        assert told == [*tools, ("closed", None), *tools, *more, ("closed", None)]

    def test_a_block_that_is_left_in_another_context(self, inbox: Any) -> None:
        def answer() -> Generator[str | None]:
            with program(id="p"):
                opened = current_program()
                yield opened.id if opened else None

        # As a server does that runs each piece of a stream in some thread of its own.
        pieces = answer()
        assert copy_context().run(next, pieces) == "p"
        assert copy_context().run(next, pieces, "over") == "over"
        assert inbox.events(1) == [{"event": "closed", "program": "p"}]
        assert current_program() is None

    async def test_a_block_in_a_stream_that_nobody_reads_to_its_end(self, inbox: Any) -> None:
        async def answer() -> AsyncGenerator[str]:
            async with program(id="p"):
                yield "piece"

        pieces = answer()
        assert await anext(pieces) == "piece"
        # As the loop does with what was left half-way.
        await asyncio.create_task(pieces.aclose(), context=Context())
        assert inbox.events(1) == [{"event": "closed", "program": "p"}]

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
            (7, "7"),
            (" task\n7 ", "task7"),
            ("gr\u00f6\u00dfe \u6771", "gr%C3%B6%C3%9Fe %E6%9D%B1"),
            ("100%", "100%"),
            ("\ud800", "%ED%A0%80"),
        ],
    )
    def test_any_name_can_be_told(self, inbox: Any, given: Any, told: str) -> None:
        with program(id=given, agent=given) as opened, tool_call("bash"):
            assert opened.id == str(given)
            assert current_headers() == {
                "x-agentsched-program": told,
                "x-agentsched-agent": told,
            }
            with program(id="child"):
                assert current_headers()["x-agentsched-parent"] == told
        assert [e["program"] for e in inbox.events(4)] == [told, "child", told, told]

    def test_the_tenant_of_the_settings_is_told_with_calls_too(self, inbox: Any) -> None:
        agentsched.configure(inbox.url, tenant="red")
        assert current_headers() == {"x-agentsched-tenant": "red"}
        with program(id="p"):
            assert current_headers()["x-agentsched-tenant"] == "red"
        with program(id="q", tenant="blue"):
            assert current_headers()["x-agentsched-tenant"] == "blue"
        said = [inbox.posts.get(timeout=60)[1]["x-agentsched-tenant"] for _ in range(2)]
        assert said == ["red", "blue"]

    @pytest.mark.parametrize(("given", "told"), [("größe", "gr%C3%B6%C3%9Fe"), ("東", "%E6%9D%B1")])
    def test_a_tenant_beyond_ascii_is_the_same_for_calls_and_reports(
        self, inbox: Any, given: str, told: str
    ) -> None:
        agentsched.configure(inbox.url, tenant=given)
        assert current_headers() == {"x-agentsched-tenant": told}
        with program(id="p"):
            pass
        assert inbox.posts.get(timeout=60)[1]["x-agentsched-tenant"] == told

    def test_one_scope_is_not_two_programs(self) -> None:
        scope = program()
        with scope, pytest.raises(RuntimeError), scope:
            pass
        with scope as again:
            assert again is current_program()


class TestAgentStep:
    def test_bare_and_with_knowledge(self) -> None:
        @agent_step
        def bare(x: int) -> int:
            step = current_step()
            assert step is not None
            assert step.name == "bare"
            return x

        @agent_step(name="think", tools=["bash", "edit"], expects={"bash": 2.0, "edit": 0.1})
        def think() -> dict[str, str]:
            return current_headers()

        assert bare(3) == 3
        assert think() == {"x-agentsched-resume": "2"}
        with program(id="p", deadline_s=5):
            headers = think()
            assert headers["x-agentsched-program"] == "p"
            assert headers["x-agentsched-resume"] == "2"
        assert current_step() is None

    @pytest.mark.parametrize(("step", "around"), [(5, 600), (600, 5), (5, None), (None, 5)])
    def test_the_sooner_of_two_deadlines_counts(
        self, step: float | None, around: float | None
    ) -> None:
        @agent_step(deadline_s=step)
        def think() -> dict[str, str]:
            return current_headers()

        with program(deadline_s=around):
            assert float(think()["x-agentsched-deadline"]) == pytest.approx(5, abs=1)

    def test_all_that_may_be_said(self) -> None:
        @agent_step(priority=-1, output_tokens=300, deadline_s=4)
        def think() -> dict[str, str]:
            return current_headers()

        assert think() == {
            "x-agentsched-priority": "-1",
            "x-agentsched-output-tokens": "300",
            "x-agentsched-deadline": "4",
        }

    def test_numbers_are_told_as_they_are(self) -> None:
        @agent_step(priority=1_795_370_123, output_tokens=1_048_577, expects={"bash": 0.5})
        def think() -> dict[str, str]:
            return current_headers()

        assert think() == {
            "x-agentsched-priority": "1795370123",
            "x-agentsched-output-tokens": "1048577",
            "x-agentsched-resume": "0.5",
        }

    async def test_a_function_that_returns_a_coroutine(self) -> None:
        async def create() -> str | None:
            await asyncio.sleep(0)
            step = current_step()
            return step.name if step else None

        @agent_step
        def think() -> Coroutine[Any, Any, str | None]:
            return create()

        class Model:
            async def __call__(self) -> str | None:
                return await create()

        pending = think()
        assert current_step() is None
        assert await pending == "think"
        assert await agent_step(name="asked")(Model())() == "asked"
        assert current_step() is None

    async def test_generators_do_not_leak_it(self) -> None:
        @agent_step
        def tokens() -> Generator[str | None]:
            step = current_step()
            yield step.name if step else None

        @agent_step
        async def stream() -> AsyncGenerator[str | None]:
            step = current_step()
            yield step.name if step else None

        for item in tokens():
            assert item == "tokens"
            assert current_step() is None
        async for item in stream():
            assert item == "stream"
            assert current_step() is None

    def test_wrong_times(self) -> None:
        with pytest.raises(ValueError, match="bash"):
            agent_step(expects={"bash": -1.0})

    def test_one_name_in_place_of_a_list(self) -> None:
        with pytest.raises(TypeError, match=r"tools=\['bash'\]"):
            agent_step(tools="bash")
        with pytest.raises(TypeError, match=r"next=\['edit'\]"):
            agent_step(next="edit")

    def test_declared_steps_are_a_workflow(self) -> None:
        @agent_step(tools=["grep"], next=["edit", "done"], expects={"grep": 0.5})
        def explore() -> None: ...

        @agent_step(tools=["edit"], next=["explore"])
        def edit() -> None: ...

        @agent_step
        def done() -> None: ...

        declared = declared_workflow("fix", explore, edit, done, agent="fixer")
        workflow = read_workflow(declared)
        assert (workflow.agent, workflow.start) == ("fixer", "explore")
        assert workflow.steps["explore"].expected == 500_000_000
        with pytest.raises(ValueError, match="agent_step"):
            declared_workflow("x", print)
        with pytest.raises(ValueError, match="two steps"):
            declared_workflow("x", done, done)
        with pytest.raises(ValueError, match="at least one"):
            declared_workflow("x")

    def test_tools_whose_times_are_known_are_the_steps_tools(self) -> None:
        """Of a step that names none, a workflow would say that it calls none and is the last."""

        @agent_step(expects={"bash": 2.0})
        def run() -> None: ...

        declared = declared_workflow("fix", run)
        assert declared["steps"]["run"] == {"tools": ["bash"], "next": [], "expected_s": 2.0}

    def test_a_workflow_is_about_its_agent_as_calls_name_it(self) -> None:
        @agent_step
        def done() -> None: ...

        for declared in (
            declared_workflow("prüfen", done),
            declared_workflow("check", done, agent="prüfen"),
        ):
            with program(agent="prüfen"):
                named = current_headers()["x-agentsched-agent"]
            assert read_workflow(declared).agent == named
        assert "agent" not in declared_workflow("check", done)


class TestToolCall:
    async def test_start_and_end_are_told(self, inbox: Any) -> None:
        @tool_call(name="bash", call_id="call")
        async def run(command: str, call: str) -> str:
            return command

        @agent_step(tools=["bash"], expects={"bash": 2.0})
        async def think() -> None:
            assert await run("ls", call="call-7") == "ls"
            assert await run("ls", "call-8") == "ls"

        began = time.monotonic()
        async with program(id="p"):
            await think()
        started, finished, second, _, closed = inbox.events(5)
        assert 0 <= finished.pop("took_s") <= time.monotonic() - began
        assert started == {
            "event": "started",
            "program": "p",
            "tool": "bash",
            "call_id": "call-7",
            "expected_s": 2.0,
        }
        assert finished == {
            "event": "finished",
            "program": "p",
            "tool": "bash",
            "call_id": "call-7",
        }
        assert second["call_id"] == "call-8"
        assert closed == {"event": "closed", "program": "p"}

    def test_around_a_block_and_bare(self, inbox: Any) -> None:
        @tool_call
        def edit() -> None:
            raise KeyError

        with program(id="p"):
            with tool_call("bash", call_id="c1", expects_s=9):
                pass
            with pytest.raises(KeyError):
                edit()
        events = inbox.events(5)
        assert [(e["event"], e.get("tool")) for e in events] == [
            ("started", "bash"),
            ("finished", "bash"),
            ("started", "edit"),
            ("finished", "edit"),
            ("closed", None),
        ]
        assert events[0]["expected_s"] == 9
        assert events[3]["is_error"] is True

    async def test_around_an_async_block(self, inbox: Any) -> None:
        async with program(id="p"), tool_call("bash"):
            pass
        assert [e["event"] for e in inbox.events(3)] == ["started", "finished", "closed"]

    async def test_one_block_of_several_programs_at_once(self, inbox: Any) -> None:
        bash = tool_call("bash")
        both, first_is_over = asyncio.Barrier(2), asyncio.Event()

        async def work(name: str) -> None:
            async with program(id=name):
                with bash:
                    await both.wait()
                    if name == "b":
                        await first_is_over.wait()
                first_is_over.set()

        await asyncio.gather(work("a"), work("b"))
        told = [(e["event"], e["program"]) for e in inbox.events(6)]
        assert told[2:] == [("finished", "a"), ("closed", "a"), ("finished", "b"), ("closed", "b")]

    async def test_a_function_that_returns_a_coroutine(self, inbox: Any) -> None:
        ran: list[str] = []

        async def execute(command: str) -> None:
            ran.append(command)
            raise KeyError(command)

        run = tool_call("bash")(lambda command: execute(command))
        async with program(id="p"):
            pending = run("ls")
            assert await asyncio.to_thread(agentsched.sdk.reporter.reporter().flush, 60)
            assert [e["event"] for e in inbox.events(1)] == ["started"]
            with pytest.raises(KeyError):
                await pending
        assert ran == ["ls"]
        finished, _ = inbox.events(2)
        assert (finished["event"], finished["is_error"]) == ("finished", True)

    @pytest.mark.parametrize("kind", ["executor", "loop"])
    @pytest.mark.parametrize("is_cancelled", [False, True])
    async def test_a_function_that_returns_a_future(
        self, inbox: Any, kind: str, *, is_cancelled: bool
    ) -> None:
        """As what an executor is given: the tool runs until that is done."""
        future: Any = Future() if kind == "executor" else asyncio.get_running_loop().create_future()
        run = tool_call("bash")(lambda: future)
        async with program(id="p"):
            assert run() is future
            assert await asyncio.to_thread(agentsched.sdk.reporter.reporter().flush, 60)
            assert [e["event"] for e in inbox.events(1)] == ["started"]
            if is_cancelled:
                future.cancel()
            else:
                future.set_result(None)
            await asyncio.sleep(0)
        finished, closed = inbox.events(2)
        assert (finished["event"], closed["event"]) == ("finished", "closed")
        assert finished.get("is_error", False) is is_cancelled

    def test_where_the_calls_id_stands(self, inbox: Any) -> None:
        class Shell:
            def run(self, command: str, call: str) -> str:
                return command

        def many(*commands: str, call: str = "") -> None:
            """Its id is told by name only."""

        with program(id="p"):
            tool_call("bash", call_id="call")(Shell().run)("ls", "c1")
            tool_call("bash", call_id="call")(many)("a", "b", "c")
            tool_call("bash", call_id="call")(many)("a", call="c2")
            tool_call("bash", call_id="call")(Shell().run)("ls", 3)  # type: ignore[arg-type]
        started = [e.get("call_id") for e in inbox.events(9) if e["event"] == "started"]
        assert started == ["c1", None, "c2", "3"]

    def test_a_time_that_is_no_time_is_not_told(self, inbox: Any) -> None:
        with program(id="p"):
            for span in (float("inf"), float("nan"), -1.0, 0.0):
                with tool_call("bash", expects_s=span):
                    pass
        started = [e.get("expected_s") for e in inbox.events(9) if e["event"] == "started"]
        assert started == [None, None, None, 0.0]

    def test_outside_a_program_there_is_nobody_to_tell_of(self, inbox: Any) -> None:
        with tool_call("bash"):
            pass
        with program(id="later"):
            pass
        assert inbox.events(1) == [{"event": "closed", "program": "later"}]

    def test_wrong_uses(self) -> None:
        with pytest.raises(ValueError, match="no argument"):
            tool_call(call_id="nowhere")(lambda: None)
        with pytest.raises(TypeError, match="neither"):
            tool_call(3)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="name"), tool_call():
            pass


@pytest.mark.slow
def test_the_package_is_light() -> None:
    code = (
        "import sys, agentsched\n"
        "agentsched.agent_step(lambda: None); agentsched.tool_call('x'); agentsched.program()\n"
        "heavy = {'networkx', 'msgspec', 'pydantic', 'httpx', 'aiohttp', 'openai', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_names_are_exported() -> None:
    assert agentsched.program is program
    assert "agent_step" in dir(agentsched)
