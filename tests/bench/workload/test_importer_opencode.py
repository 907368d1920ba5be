"""Imports of OpenCode's sessions, in small: from its database, its files and an export."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trace_files import imported, written

LAYOUTS = ("database", "files", "first files")
_EPOCH_MS = 1_767_225_600_000


def _ms(seconds: float) -> int:
    return _EPOCH_MS + round(seconds * 1000)


class _Session:
    """A session's messages, each with its parts."""

    def __init__(self, name: str, *, begun: float = 0, parent: str | None = None) -> None:
        self.info: dict[str, Any] = {"id": name, "time": {"created": _ms(begun)}}
        if parent is not None:
            self.info["parentID"] = parent
        self.said: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def _say(self, info: dict[str, Any], parts: list[dict[str, Any]]) -> str:
        session = self.info["id"]
        own = f"msg_{session}_{len(self.said):03d}"
        ids = {"sessionID": session, "messageID": own}
        numbered = [
            part | ids | {"id": f"prt_{own}_{place:03d}"} for place, part in enumerate(parts)
        ]
        self.said.append((info | {"id": own, "sessionID": session}, numbered))
        return own

    def user(self, text: str, *parts: dict[str, Any], at: float = 0) -> str:
        told = [{"type": "text", "text": text}] if text else []
        return self._say({"role": "user", "time": {"created": _ms(at)}}, [*told, *parts])

    def says(self, text: str, *tools: dict[str, Any], at: float, until: float, **info: Any) -> str:
        tokens = {"input": 100, "output": 20, "reasoning": 0, "cache": {"read": 900, "write": 5}}
        tokens = info.pop("tokens", tokens)
        parts: list[dict[str, Any]] = [{"type": "step-start"}, _text(text), *tools]
        parts.append({"type": "step-finish", "reason": "stop", "tokens": tokens})
        times = {"created": _ms(at), "completed": _ms(until)}
        more = {"role": "assistant", "modelID": "sim", "agent": "build", "time": times}
        return self._say(more | {"tokens": tokens} | info, parts)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool(call: str, start: float, end: float, *, name: str = "bash", **state: Any) -> Any:
    times = {"start": _ms(start), "end": _ms(end)} | state.pop("time", {})
    given = {"status": "completed", "input": {"command": "ls -l"}, "output": f"out of {call}"}
    return {"type": "tool", "tool": name, "callID": call, "state": given | state | {"time": times}}


def _stored(folder: Path, *sessions: _Session, layout: str) -> Path:
    """The sessions as OpenCode keeps them, in a folder that is given back."""
    if layout == "database":
        folder.mkdir()
        _database(folder / "opencode.db", sessions)
        return folder
    is_first = layout == "first files"
    for session in sessions:
        name = session.info["id"]
        root = folder / "storage" / "session" if is_first else folder / "storage"
        below = folder / "storage" / "session" / ("info" if is_first else "global")
        _file(below / f"{name}.json", session.info)
        for info, parts in session.said:
            own = info["id"]
            _file(root / "message" / name / f"{own}.json", info)
            place = root / "part" / name / own if is_first else root / "part" / own
            for part in parts:
                _file(place / f"{part['id']}.json", part)
    return folder


def _file(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written(path, value)


def _database(path: Path, sessions: tuple[_Session, ...]) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "CREATE TABLE session (id, parent_id, time_created, title);"
            "CREATE TABLE message (id, session_id, time_created, data);"
            "CREATE TABLE part (id, message_id, session_id, data);"
        )
        for session in sessions:
            name, begun = session.info["id"], session.info["time"]["created"]
            row = (name, session.info.get("parentID"), begun, "a title")
            database.execute("INSERT INTO session VALUES (?, ?, ?, ?)", row)
            for info, parts in session.said:
                own, at = info["id"], info["time"]["created"]
                rest = {k: v for k, v in info.items() if k not in ("id", "sessionID")}
                given = (own, name, at, json.dumps(rest))
                database.execute("INSERT INTO message VALUES (?, ?, ?, ?)", given)
                for part in parts:
                    told = (part["id"], own, name, json.dumps(part))
                    database.execute("INSERT INTO part VALUES (?, ?, ?, ?)", told)
        database.commit()


def _exported(session: _Session) -> dict[str, Any]:
    messages = [{"info": info, "parts": parts} for info, parts in session.said]
    return {"info": session.info, "messages": messages}


def _texts(row: Any, step: int) -> list[str | None]:
    prompt = row.steps[step].prompt or ()
    return [row.messages[n].text for low, high in prompt for n in range(low, high + 1)]


def _barn() -> _Session:
    session = _Session("ses_main")
    session.user("look at the barn")
    fails = {"status": "error", "error": "no such thing"}
    tools = (_tool("a", 3, 8), _tool("b", 4, 5, **fails))
    session.says("Let me look.", *tools, at=1, until=9)
    session.says("It is fine.", at=10, until=12)
    return session


@pytest.mark.parametrize("layout", [*LAYOUTS, "export"])
def test_opencode_calls_tools_and_counts(layout: str, tmp_path: Path) -> None:
    if layout == "export":
        path = written(tmp_path / "export.json", _exported(_barn()))
    else:
        path = _stored(tmp_path / "data", _barn(), layout=layout)
    (row,), report = imported(path, tmp_path / "t.jsonl", text=True)
    assert (report.errors_count, set(report.files)) == (0, {"opencode"})
    assert (row.session_id, row.agent, row.model) == ("ses_main", "opencode", "sim")
    assert [(s.input_tokens, s.prefix_tokens, s.output_tokens) for s in row.steps] == [
        (1005, 900, 20),
        (1005, 900, 20),
    ]
    first = row.steps[0]
    # The model had spoken when the last of its tools began.
    assert (first.t_s, first.llm_s, first.gap_s, first.gap_kind) == (0.0, 3.0, 6.0, "tool")
    assert [(t.name, t.command, t.duration_s, t.is_error) for t in first.tools] == [
        ("bash", "ls", 5.0, False),
        ("bash", "ls", 1.0, True),
    ]
    assert row.token_source["input"] == "recorded"
    assert row.system_tokens is not None
    assert 950 < row.system_tokens < 1005
    assert _texts(row, 1)[1:] == ["look at the barn", "Let me look.", "out of a", "no such thing"]


def test_opencode_reasoning_within_or_beside_the_answer(tmp_path: Path) -> None:
    session = _Session("ses_main")
    cache = {"read": 0, "write": 0}
    for place, total in enumerate((None, 130, 140)):
        tokens = {"input": 100, "output": 30, "reasoning": 10, "cache": cache}
        tokens |= {} if total is None else {"total": total}
        session.user("think")
        session.says("so", at=place, until=place + 0.5, tokens=tokens)
    path = _stored(tmp_path / "data", session, layout="files")
    (row,), _ = imported(path, tmp_path / "t.jsonl")
    assert [(s.output_tokens, s.reasoning_tokens) for s in row.steps] == [
        (30, 10),
        (30, 10),
        (40, 10),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opencode_sub_agents_and_forks(layout: str, tmp_path: Path) -> None:
    main = _barn()
    main.user("ask somebody", at=13)
    task = _tool("c", 15, 19, name="task", metadata={"sessionId": "ses_child"})
    main.says("Two of us.", task, at=14, until=19.5)
    child = _Session("ses_child", begun=15, parent="ses_main")
    child.user("count", at=15)
    child.says("twelve", at=16, until=18, agent="general")
    fork = _Session("ses_fork", begun=30)
    for info, parts in main.said:
        fork._say(info, parts)
    fork.user("and elsewhere?", at=30)
    fork.says("too", at=31, until=32)
    path = _stored(tmp_path / "data", fork, child, main, layout=layout)
    rows, report = imported(path, tmp_path / "t.jsonl", text=True)
    assert report.errors_count == 0
    assert [(row.session_id, row.parent, row.agent, len(row.steps)) for row in rows] == [
        ("ses_main", None, "opencode", 3),
        ("ses_child", "ses_main", "opencode/general", 1),
        ("ses_fork", None, "opencode", 1),
    ]
    assert rows[0].steps[2].tools[0].child == "ses_child"
    assert rows[1].parent_t_s == 15.0
    assert _texts(rows[2], 0)[-3:] == ["Two of us.", "out of c", "and elsewhere?"]


@pytest.mark.parametrize("keeps", [True, False])
def test_opencode_compaction_begins_the_prompt_anew(keeps: bool, tmp_path: Path) -> None:
    session = _barn()
    tail = session.user("look again", at=13)
    session.says("Again.", at=14, until=15)
    part: dict[str, Any] = {"type": "compaction", "auto": True}
    asker = session.user("", part | ({"tail_start_id": tail} if keeps else {}), at=16)
    session.says("what was seen", at=17, until=18, summary=True, parentID=asker, mode="compaction")
    session.user("go on", at=19)
    session.says("going", at=20, until=21)
    path = _stored(tmp_path / "data", session, layout="database")
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [step.is_compaction for step in row.steps] == [False] * 4 + [True]
    kept = ["look again", "Again."] if keeps else []
    head = ["What did we do so far?", "what was seen"]
    assert _texts(row, 4)[1:] == [*head, *kept, "go on"]
    # The summary is asked for with a text that is not in the store.
    assert _texts(row, 3) == [None]


def test_opencode_results_that_were_cleared(tmp_path: Path) -> None:
    session = _Session("ses_main")
    session.user("look")
    tool = _tool("a", 2, 3, time={"compacted": _ms(6)})
    session.says("Let me look.", tool, at=1, until=3)
    session.says("So.", at=4, until=5)
    session.user("go on", at=7)
    session.says("going", at=8, until=9)
    path = _stored(tmp_path / "data", session, layout="database")
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert _texts(row, 1)[-1] == "out of a"
    assert _texts(row, 2)[3] == "[Old tool result content cleared]"
    assert [step.is_compaction for step in row.steps] == [False, False, True]


def test_opencode_message_of_several_calls(tmp_path: Path) -> None:
    """Old versions have one message for all calls until the user speaks again."""
    session = _Session("ses_main")
    session.user("look")
    session.says("Let me look.", _tool("a", 2, 4), at=1, until=8)
    _, parts = session.said[-1]
    tokens = {"input": 40, "output": 7, "reasoning": 0, "cache": {"read": 1000, "write": 0}}
    more = [{"type": "step-start"}, _text("Fine."), {"type": "step-finish", "tokens": tokens}]
    parts += [part | {"id": f"prt_z_{place}"} for place, part in enumerate(more)]
    path = _stored(tmp_path / "data", session, layout="files")
    (row,), _ = imported(path, tmp_path / "t.jsonl", text=True)
    assert [(s.input_tokens, s.output_tokens, s.t_s) for s in row.steps] == [
        (1005, 20, 0.0),
        (1040, 7, 3.0),
    ]
    assert _texts(row, 1)[1:] == ["look", "Let me look.", "out of a"]


def test_opencode_write_ahead_log_is_read_and_nothing_is_written(tmp_path: Path) -> None:
    folder = _stored(tmp_path / "data", _barn(), layout="database")
    path = folder / "opencode.db"
    imported(path, tmp_path / "t.jsonl")
    assert [p.name for p in folder.iterdir()] == ["opencode.db"]
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("UPDATE session SET id = 'ses_other'")
        for table in ("message", "part"):
            database.execute(f"UPDATE {table} SET session_id = 'ses_other'")
        database.commit()
        before = path.read_bytes()
        (row,), _ = imported(folder, tmp_path / "t2.jsonl")
        assert path.read_bytes() == before
    assert row.session_id == "ses_other"


def test_opencode_row_that_is_broken_is_left_out(tmp_path: Path) -> None:
    folder = _stored(tmp_path / "data", _barn(), layout="database")
    path = folder / "opencode.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE message SET data = '{\"role\"' WHERE id = 'msg_ses_main_001'")
        database.commit()
    (row,), report = imported(folder, tmp_path / "t.jsonl")
    assert len(row.steps) == 1
    assert f"{path}: message msg_ses_main_001: the JSON is cut short" in str(report.errors[0])


def test_opencode_database_that_was_cut_keeps_what_can_be_read(tmp_path: Path) -> None:
    session = _barn()
    for place in range(40):
        session.user("go on " * 300, at=20 + 2 * place)
        session.says("going " * 300, at=20 + 2 * place, until=21 + 2 * place)
    folder = _stored(tmp_path / "data", session, layout="database")
    path = folder / "opencode.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096])
    _, report = imported(folder, tmp_path / "t.jsonl")
    assert [str(error).partition(" of ses_main: ")[0] for error in report.errors] == [
        f"{path}: cannot read messages",
        f"{path}: cannot read parts",
    ]
    assert 10 < report.calls < 42


def test_opencode_file_that_was_cut_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = _stored(tmp_path / "data", _barn(), layout="files")
    path = folder / "storage" / "message" / "ses_main" / "msg_ses_main_002.json"
    path.write_text(path.read_text()[:4])
    (row,), report = imported(folder, tmp_path / "t.jsonl")
    assert len(row.steps) == 1
    assert {error.path for error in report.errors} == {str(path)}
    assert report.errors[0].line == 1


@pytest.mark.parametrize("share", [0.7, 0.95])
def test_opencode_export_that_was_cut_keeps_what_came_before(share: float, tmp_path: Path) -> None:
    text = json.dumps(_exported(_barn()), indent=2)
    path = tmp_path / "export.json"
    path.write_text(text[: int(len(text) * share)])
    (row,), report = imported(path, tmp_path / "t.jsonl")
    assert row.is_cut
    assert [error.line for error in report.errors] == [path.read_text().count("\n") + 1]
    assert "cut short" in str(report.errors[0])


def test_opencode_other_databases_are_no_sessions(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE session (id)")
    _, report = imported(path, tmp_path / "t.jsonl")
    assert "of no format that is known" in str(report.errors[0])
    assert "a SQLite database" in str(report.errors[0])
