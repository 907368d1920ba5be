"""Our own journal as a trace: what the proxy saw, without a word of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shorthand import arrived, at, finished, prefix, tool_call

from agentsched.kernel import JournalEntry, JournalHeader, encode, encode_header
from agentsched.model import (
    CallId,
    Command,
    ConversationId,
    Dispatch,
    EngineId,
    Event,
    Limits,
    Lineage,
    ProgramClosed,
    ProgramId,
    StepCancelled,
    StepClass,
    StepId,
    StepStarted,
    ToolFinished,
    ToolName,
    seconds,
)
from agentsched_bench.workload.importers import import_trace
from agentsched_bench.workload.trace import read_trace
from agentsched_bench.workload.validate import validate_trace


class _Journal:
    """Entries with their instants in seconds."""

    def __init__(self) -> None:
        self.lines = [encode_header(JournalHeader(profile="fcfs", choices={}, limits=Limits()))]

    def add(self, time_s: float, event: Event, *commands: Command) -> None:
        entry = JournalEntry(seq=len(self.lines), now=at(time_s), event=event, commands=commands)
        self.lines.append(encode(entry))

    def step(
        self, name: str, time_s: float, *, prefixes: list[tuple[str, int]], **more: Any
    ) -> None:
        begins = tuple(prefix(*one) for one in prefixes)
        tokens = begins[-1].tokens
        event = arrived(name, tenant="team", tokens=tokens, prefixes=begins, **more)
        self.add(time_s, event)

    def answer(
        self, name: str, time_s: float, *, prompt: int, output: int, tools: str = ""
    ) -> None:
        step = StepId(name)
        self.add(time_s - 1.0, StepStarted(step=step), Dispatch(step=step, engine=EngineId("e")))
        calls = (tool_call(f"{name}-{tool}", tool) for tool in tools.split())
        self.add(time_s, finished(step, *calls, prompt=prompt, output=output))

    def write(self, path: Path) -> Path:
        path.write_bytes(b"\n".join(self.lines) + b"\n")
        return path


def test_steps_tools_and_sub_agents_come_back(tmp_path: Path) -> None:
    journal = _Journal()
    journal.step("s1", 10.0, prefixes=[("sys", 64), ("a", 128)])
    journal.answer("s1", 13.0, prompt=128, output=20, tools="bash task")
    journal.step(
        "k1",
        14.0,
        prefixes=[("sys", 64), ("k", 96)],
        conversation=ConversationId("kid"),
        parent_conversation=ConversationId("p"),
        lineage=Lineage.SPAWNED,
    )
    journal.answer("k1", 16.0, prompt=96, output=5)
    took = seconds(2)
    tool = ToolFinished(
        program=ProgramId("p"), call_id=CallId("s1-bash"), tool=ToolName("bash"), took=took
    )
    journal.add(17.0, tool)
    journal.step("gone", 17.5, prefixes=[("x", 30)])
    journal.add(17.6, StepCancelled(step=StepId("gone"), reason="client left"))
    more = [("sys", 64), ("a", 128), ("b", 200)]
    journal.step("s2", 18.0, prefixes=more, lineage=Lineage.EXTENDS)
    journal.answer("s2", 20.0, prompt=200, output=10)
    journal.add(21.0, ProgramClosed(program=ProgramId("p"), reason="final"))

    report = import_trace([journal.write(tmp_path / "j.ndjson")], tmp_path / "t.jsonl")
    assert (report.errors_count, dict(report.files)) == (0, {"journal": 1})
    assert validate_trace(tmp_path / "t.jsonl").errors == 0
    main, child = read_trace(tmp_path / "t.jsonl")
    assert (main.tenant, main.start_s) == ("team", 0.0)
    one, two = main.steps
    assert (one.llm_s, one.ttft_s, one.gap_s) == (1.0, 0.0, 5.0)
    assert [(t.name, t.duration_s) for t in one.tools] == [("bash", 2.0), ("task", None)]
    assert (two.new_input_tokens, two.prefix_tokens) == (52, 128)
    assert (child.parent, child.parent_t_s) == ("p", 4.0)
    # The system prompt is shared block by block, and what follows it is not.
    assert one.hash_ids is not None
    assert child.steps[0].hash_ids is not None
    assert one.hash_ids == ((1, 8),)
    assert child.steps[0].hash_ids == ((1, 4), (13, 14))


def test_a_journal_that_breaks_off_keeps_its_finished_steps(tmp_path: Path) -> None:
    journal = _Journal()
    journal.step("s1", 1.0, prefixes=[("a", 32)])
    journal.answer("s1", 3.0, prompt=32, output=4)
    path = journal.write(tmp_path / "j.ndjson")
    with path.open("ab") as file:
        file.write(b'{"seq": 9, "now": 1, "ev')
    report = import_trace([path], tmp_path / "t.jsonl")
    assert (report.calls, report.errors_count) == (1, 1)
    assert report.errors[0].line == len(journal.lines) + 1


def test_journals_imported_together_share_what_has_one_name_and_nothing_else(
    tmp_path: Path,
) -> None:
    """Numbers of blocks are of one import: those of a second file do not begin anew."""
    for name, own in (("one", "a"), ("two", "b")):
        journal = _Journal()
        begins = [("sys", 64), (own, 128)]
        journal.step("s1", 1.0, prefixes=begins, program=ProgramId(name))
        journal.answer("s1", 3.0, prompt=128, output=4)
        journal.write(tmp_path / f"{name}.ndjson")

    paths = [tmp_path / "one.ndjson", tmp_path / "two.ndjson"]
    import_trace(paths, tmp_path / "t.jsonl")

    one, two = (row.steps[0].hash_ids for row in read_trace(tmp_path / "t.jsonl"))
    assert one == ((1, 8),)
    assert two == ((1, 4), (9, 12))


def test_prompts_that_go_on_have_the_blocks_of_the_ones_before(tmp_path: Path) -> None:
    """Whatever was dropped of the answers, and however far off the estimate was each time.

    A step names its own conversation's last prompt, and none before that.
    """
    journal = _Journal()
    told = [
        ([("sys", 64), ("a", 128)], 150),
        ([("sys", 64), ("a", 128), ("b", 200)], 220),
        ([("sys", 70), ("b", 210), ("c", 300)], 340),
    ]
    for number, (begins, prompt) in enumerate(told):
        lineage = Lineage.EXTENDS if number else Lineage.NEW
        journal.step(f"s{number}", 10.0 * number, prefixes=begins, lineage=lineage)
        # Most of it is thinking, which comes back in no prompt.
        journal.answer(f"s{number}", 10.0 * number + 5, prompt=prompt, output=500)
    journal.step("t", 50.0, prefixes=[("sys", 60), ("other", 90)], program=ProgramId("q"))
    journal.answer("t", 55.0, prompt=130, output=5)

    import_trace([journal.write(tmp_path / "j.ndjson")], tmp_path / "t.jsonl")

    one, two = read_trace(tmp_path / "t.jsonl")
    assert [step.new_input_tokens for step in one.steps] == [None, None, None]
    assert [step.hash_ids for step in one.steps] == [((1, 9),), ((1, 13),), ((1, 21),)]
    assert [step.prefix_tokens for step in one.steps] == [None, 150, 220]
    # 64 of 128 tokens by the estimate were 75 of 150, of which four blocks are whole.
    assert two.steps[0].hash_ids == ((1, 4), (22, 25))


def test_the_call_for_a_title_that_comes_first_is_not_the_main_conversation(
    tmp_path: Path,
) -> None:
    journal = _Journal()
    aside: dict[str, Any] = {"conversation": ConversationId("p#auxiliary")}
    journal.step("t", 1.0, prefixes=[("t", 32)], step_class=StepClass.AUXILIARY, **aside)
    journal.step("s", 1.5, prefixes=[("a", 64)])
    journal.answer("t", 3.0, prompt=32, output=4)
    journal.answer("s", 4.0, prompt=64, output=9)
    journal.add(5.0, ProgramClosed(program=ProgramId("p"), reason="final"))

    import_trace([journal.write(tmp_path / "j.ndjson")], tmp_path / "t.jsonl")

    rows = list(read_trace(tmp_path / "t.jsonl"))
    assert [(row.session_id, row.parent, row.parent_t_s) for row in rows] == [
        ("p", None, None),
        ("p/p#auxiliary", "p", 0.0),
    ]
