"""The commands that look inside, against a real proxy on the embedded engine."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from rich.console import Console

from agentsched.cli import main
from agentsched.inspection.cli import (
    State,
    _story_lines,
    none_shown,
    print_programs,
    program_table,
)
from agentsched.kernel.doing import ProgramState
from agentsched_graphs.export import from_json

pytestmark = pytest.mark.slow


def run(capfdbinary: Any, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


class TestPrograms:
    def test_a_table(self, proxy: Any, capfdbinary: Any, monkeypatch: Any) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        code, out, _ = run(capfdbinary, "programs", "--url", proxy.url)
        assert code == 0
        header, row = out.splitlines()
        assert header.split()[:3] == ["program", "tenant", "agent"]
        assert row.split()[:4] == ["fix-it", "default", "claude-code", "6"]

    def test_an_id_is_whole_on_eighty_columns(self) -> None:
        numbers = {"steps_done": 123, "active_steps": 12, "idle_s": 3_600.0}
        tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "output_tokens"), 12_345_678)
        row = {"program": "p-6dfc75601804a72e", "tenant": "default", "agent": "claude-code"}
        shown = io.StringIO()
        Console(width=80, file=shown).print(program_table([row | numbers | tokens]))
        assert "p-6dfc75601804a72e" in shown.getvalue()

    def test_an_id_with_its_tenant_is_whole_too(self) -> None:
        numbers = {"steps_done": 1, "active_steps": 0, "idle_s": 3.0}
        tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "output_tokens"), 10)
        row = {"program": "key-140bedbf9c3f/p-6dfc75601804a72e", "tenant": "key-140bedbf9c3f"}
        shown = io.StringIO()
        print_programs([row | {"agent": ""} | numbers | tokens], Console(width=60, file=shown))
        _, line = shown.getvalue().splitlines()
        assert line.split()[0] == row["program"]
        assert line.split()[-1] == "10"

    @pytest.mark.parametrize("length", [30, 60, 120])
    def test_a_long_name_spoils_no_line(self, length: int) -> None:
        """Who calls programs by long names can copy them all the same, and read the rest."""
        numbers = {"steps_done": 1, "active_steps": 0, "idle_s": 3.0}
        tokens = dict.fromkeys(("prompt_tokens", "cached_tokens", "output_tokens"), 12_345)
        ids = ["p-6dfc75601804a72e", f"{'t' * length}/p-6dfc75601804a72f"]
        rows = [{"program": i, "tenant": "t" * length, "agent": "a" * length} for i in ids]
        shown = io.StringIO()
        print_programs([row | numbers | tokens for row in rows], Console(width=80, file=shown))
        lines = shown.getvalue().splitlines()
        assert lines[0].split()[3:] == ["steps", "live", "idle", "prompt", "cached", "output"]
        found = {line.split()[0]: line.split()[-1] for line in lines if "12,345" in line}
        assert found == dict.fromkeys(ids, "12,345")

    def test_what_no_engine_said_is_not_shown_as_said(self) -> None:
        row = {"program": "p", "tenant": "default", "agent": "", "idle_s": 3.0, "output_tokens": 9}
        row |= {"steps_done": 2, "active_steps": 0, "prompt_tokens": 400}
        cells = []
        for cached, untold in ((0, 400), (150, 200), (0, 0)):
            shown = io.StringIO()
            numbers = {"cached_tokens": cached, "untold_tokens": untold}
            print_programs([row | numbers], Console(width=100, file=shown))
            cells.append(shown.getvalue().splitlines()[1].split()[-2])
        assert cells == ["-", "75%", "0%"]

    def test_json(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "programs", "--url", f"{proxy.url}/v1", "--json")
        assert code == 0
        [row] = json.loads(out)["programs"]
        assert (row["program"], row["steps_done"], row["conversations"]) == ("fix-it", 6, 2)

    def test_none_of_a_tenant(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "programs", "--url", proxy.url, "--tenant", "nobody")
        assert (code, out) == (0, "no program matches\n")

    def test_none_is_live(self) -> None:
        """Programs that say that they are over, as the SDK's do, are soon gone from the list."""
        told = "no program is live (of one that has ended `agentsched story PROGRAM` tells)"
        assert none_shown(0, has_filter=False) == told
        assert none_shown(0, has_filter=True) == "no program matches"

    def test_pages_and_states(self, proxy: Any, capfdbinary: Any) -> None:
        model = httpx.get(f"{proxy.url}/v1/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        names = {"x-agentsched-program": "second"}
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=names)
        assert answer.status_code == 200, answer.text
        listing = ("programs", "--url", proxy.url)
        try:
            _, out, _ = run(capfdbinary, *listing, "--limit", "1")
            assert "second" in out
            assert out.endswith("1 more (--offset 1)\n")
            _, out, _ = run(capfdbinary, *listing, "--limit", "1", "--offset", "1")
            assert "fix-it" in out
            assert "more" not in out
            assert run(capfdbinary, *listing, "--offset", "2")[1] == "no more than 2\n"
            _, out, _ = run(capfdbinary, *listing, "--agent", "claude-code", "--json")
            assert [row["program"] for row in json.loads(out)["programs"]] == ["fix-it"]
            assert run(capfdbinary, *listing, "--state", "waiting")[1] == "no program matches\n"
            assert run(capfdbinary, *listing, "--state", "asleep")[0] == 2
        finally:
            httpx.post(f"{proxy.url}/agentsched/v1/programs/second/release")
        _, out, _ = run(capfdbinary, "story", "second", "--url", proxy.url)
        first, *_, last = out.splitlines()
        assert re.fullmatch(r"closed \d+ s ago", first)
        assert "ProgramClosed" in last

    def test_states_are_those_that_programs_have(self) -> None:
        assert {str(state) for state in State} == set(get_args(ProgramState))

    def test_the_url_may_come_from_the_environment(
        self, proxy: Any, capfdbinary: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_URL", proxy.url)
        code, out, _ = run(capfdbinary, "programs", "--json")
        assert code == 0
        assert json.loads(out)["total"] == 1


class TestGraph:
    def test_json_is_the_whole_graph(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(
            capfdbinary, "graph", proxy.program, "--format", "json", "--url", proxy.url
        )
        assert code == 0
        shown = from_json(out.encode())
        kinds = [edge.kind for edge in shown.edges]
        assert (kinds.count("spawns"), kinds.count("joins")) == (1, 1)
        assert (kinds.count("calls"), kinds.count("data"), kinds.count("control")) == (5, 5, 4)
        tools = {node.label for node in shown.nodes if node.kind == "tool"}
        assert tools == {"Read", "Grep", "Task", "Bash", "Glob"}
        steps = [node for node in shown.nodes if node.kind == "step"]
        assert all(node.state == "finished" and node.engine == "sim-0" for node in steps)
        assert all(
            node.begins <= (node.dispatched or 0) <= (node.started or 0) <= (node.ends or 0)
            for node in steps
        )

    @pytest.mark.parametrize(("format", "begin"), [("mermaid", "flowchart"), ("dot", "digraph")])
    def test_text(self, proxy: Any, capfdbinary: Any, format: str, begin: str) -> None:
        code, out, _ = run(
            capfdbinary, "graph", proxy.program, "--format", format, "--url", proxy.url
        )
        assert code == 0
        assert out.startswith(begin)

    @pytest.mark.parametrize(("format", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_pictures(
        self, proxy: Any, capfdbinary: Any, tmp_path: Path, format: str, begin: bytes
    ) -> None:
        path = tmp_path / f"graph.{format}"
        arguments = ("graph", proxy.program, "-f", format, "-o", str(path), "--url", proxy.url)
        assert run(capfdbinary, *arguments) == (0, "", "")
        assert path.read_bytes().startswith(begin)
        if format == "svg":
            assert b"sub-agent" in path.read_bytes() or b"<g id=" in path.read_bytes()

    def test_one_that_nobody_knows(self, proxy: Any, capfdbinary: Any) -> None:
        code, _, err = run(capfdbinary, "graph", "n/o", "--url", proxy.url)
        assert code == 1
        # `agentsched top` shows a tenant's programs without it, beside its name.
        hint = "(`agentsched programs` lists ids; one of a tenant's begins with it: TENANT/...)"
        told = f"No graph of a program of this id is kept. {hint}"
        assert err == f"agentsched: {proxy.url}: {told}\n"


class TestStory:
    def test_by_the_name_that_its_agent_knows(self, proxy: Any, capfdbinary: Any) -> None:
        """Of a tenant's program that has ended nothing lists the id, which begins with the tenant.

        The SDK's clients have a key where nobody gave one, so that is the usual case.
        """
        model = httpx.get(f"{proxy.url}/v1/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        ids = []
        for tenant in ("team-a", "team-b"):
            headers = {"x-agentsched-program": "thread-1", "x-agentsched-tenant": tenant}
            answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            ids.append(answer.headers["x-agentsched-program"])
            quoted = ids[-1].replace("/", "%2F")
            httpx.post(f"{proxy.url}/agentsched/v1/programs/{quoted}/release")
            if len(ids) == 1:
                code, out, _ = run(capfdbinary, "story", "thread-1", "--url", proxy.url)
                assert code == 0
                assert "ProgramClosed" in out.splitlines()[-1]
                code, out, _ = run(capfdbinary, "graph", "thread-1", "--url", proxy.url)
                assert (code, out.partition(" ")[0]) == (0, "flowchart")
        assert ids == ["team-a/thread-1", "team-b/thread-1"]
        code, _, err = run(capfdbinary, "story", "thread-1", "--url", proxy.url)
        assert code == 1
        assert err == f"agentsched: {proxy.url}: several have this name: {', '.join(ids)}\n"

    def test_lines(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "story", proxy.program, "--url", proxy.url)
        assert code == 0
        lines = out.splitlines()
        assert "StepArrived" in out
        assert any("-> Dispatch" in line and "engine=sim-0" in line for line in lines)
        assert any("StepFinished" in line and "tool_calls=Task" in line for line in lines)

    def test_json(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "story", proxy.program, "--url", proxy.url, "--json")
        assert code == 0
        assert json.loads(out)["program"] == proxy.program

    def test_words_of_others_do_not_steer_the_terminal(self) -> None:
        evil = "\x1b[2J\x1b[1;1Hall engines up\n"
        event = ["ToolStarted", {"program": "p", "call_id": evil, "tool": evil}]
        calls = [{"call_id": "c", "tool": evil}]
        command = ["Reject", {"step": "s", "reason": evil, "tool_calls": calls}]
        entry = {"now": 0, "event": event, "commands": [command]}
        told = list(_story_lines([entry], begin=0))
        assert all(line.plain.isprintable() for line in told)
        assert "tool=�[2J�[1;1Hall engines up�" in told[0].plain


class TestDoctor:
    def test_an_engine(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "doctor", proxy.engine_url)
        assert code == 0
        assert "speaks vLLM's API" in out
        assert "ok prefix cache: it keeps prefixes" in out
        assert "-- pins: none" in out

    def test_the_engines_of_a_proxy(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "doctor", proxy.url, "--json")
        assert code == 0
        assert sum(json.loads(out)["clients"].values()) > 0
        [engine] = json.loads(out)["engines"]
        assert engine["engine"] == "sim-0"
        good = {f["about"] for f in engine["findings"] if f["is_good"]}
        assert {"prefix cache", "KV pool", "cached tokens", "gauges"} <= good

    def test_the_clients_of_a_proxy(self, proxy: Any, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "doctor", proxy.url)
        assert code == 0
        assert "clients seen: " in out
        assert "none yet" not in out

    def test_an_engine_of_a_proxy_that_stands_still(self, silent: str, capfdbinary: Any) -> None:
        code, out, _ = run(capfdbinary, "doctor", silent)
        assert code == 1
        _, first, then, *_ = out.splitlines()
        assert first.startswith("  !! silent: nothing has come out since ")
        assert first.endswith("; steps inside: 1")
        assert "Restart it" in then
        _, out, _ = run(capfdbinary, "doctor", silent, "--json")
        [engine] = json.loads(out)["engines"]
        assert engine["silent_for_s"] > 0
        assert engine["findings"][0]["about"] == "silent"

    def test_nothing_there(self, capfdbinary: Any) -> None:
        code, _, err = run(capfdbinary, "doctor", "http://127.0.0.1:9")
        assert code == 1
        assert err.startswith("agentsched: ")
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("programs", "--url", "http://127.0.0.1:9"), 1, "is the proxy running?"),
        (("programs", "--url", "127.0.0.1"), 2, "not a URL"),
        (("graph", "x", "--format", "gif"), 2, "gif"),
        (("story",), 2, "Missing argument"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capfdbinary: Any, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, _, err = run(capfdbinary, *arguments)
    assert found == code
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_engine_is_no_proxy(proxy: Any, capfdbinary: Any) -> None:
    code, _, err = run(capfdbinary, "programs", "--url", proxy.engine_url)
    assert code == 1
    assert err.startswith(f"agentsched: {proxy.engine_url}: ")
