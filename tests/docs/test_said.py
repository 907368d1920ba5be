"""What pages say of words, ids, routes and files is what the code takes and gives."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from agentsched.bus.messages import schemas
from agentsched.proxy.identity import native
from agentsched.proxy.identity.model import Evidence
from agentsched_bench.engine import faults
from agentsched_bench.engine.control import ControlRoutes
from agentsched_bench.engine.cost import CPU_2CORE, read_cost
from agentsched_bench.engine.playback import read_playback

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """What stands under one title of a page."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", page(name), re.M | re.S)
    assert found is not None, f"{name} has no {title!r}"
    return found[1]


class TestIds:
    def test_every_header_that_tells_is_on_the_page_about_clients(self) -> None:
        told = section("clients.md", "Ids that are understood")
        theirs = {n for n in native._TELLING_HEADERS if not n.startswith("x-agentsched-")}
        assert {*native._SESSION_HEADERS} < theirs
        assert {name for name in theirs if f"`{name}`" not in told} == set()

    def test_every_field_that_tells_is_there(self) -> None:
        told = section("clients.md", "Ids that are understood")
        names = {f"{outer}.{name}" if outer else name for outer, name in native._SESSION_FIELDS}
        assert {name for name in names if f"`{name}`" not in told} == set()
        missing = {n for n in native._TELLING_FIELDS if not re.search(rf"`{n}[`.]", told)}
        assert missing == set()

    @pytest.mark.parametrize("evidence", Evidence)
    def test_every_word_of_the_evidence_is_explained(self, evidence: Evidence) -> None:
        assert f"\n| `{evidence}` | " in page("concepts.md")

    def test_names_are_told_strongest_first(self) -> None:
        told = section("clients.md", "Ids that are understood")
        words = [str(e) for e in Evidence if e.is_declared]
        rows = re.findall(r"^\|.*\| `(\w+)` \|$", told, re.M)
        assert list(dict.fromkeys(rows)) == words


def test_times_that_agents_tell_are_asked_for_by_no_policy() -> None:
    """The pages say so: concepts, sdk and graphs. Where this fails they are to be changed."""
    for folder in ("policies/agentsched_policies", "agentsched/kernel"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "expected_return" not in path.read_text(encoding="utf-8"), path.name


def test_replicas_say_what_the_page_about_the_bus_has() -> None:
    row = re.search(
        r"^\| `replicas/\{replica\}` \|.*\| (?P<states>[^|]+) \|$", page("bus.md"), re.M
    )
    assert row is not None
    states = schemas()["replicas"]["properties"]["state"]["enum"]
    assert re.findall(r"`(\w+)`", row["states"]) == states


class TestEmbeddedEngine:
    def test_its_own_routes(self) -> None:
        told = section("simulator.md", "The embedded engine")
        routes = re.findall(r'web\.(\w+)\("(/sim/\w+)"', inspect.getsource(ControlRoutes.routes))
        assert len(routes) >= 8
        for method, path in routes:
            assert f"`{method.upper()} {path}`" in told

    def test_faults(self) -> None:
        told = section("simulator.md", "The embedded engine")
        table = told.partition("| word |")[2].partition("\n\n")[0]
        shown = re.findall(r"`([a-z][\w=-]*)`", table)
        for word in shown:
            assert faults.parse_fault(word) != faults.NO_FAULT
        known = re.findall(r'case "([\w-]+)":', inspect.getsource(faults))
        assert {word.partition("=")[0] for word in shown} == {*known}

    def test_files(self, tmp_path: Path) -> None:
        told = section("simulator.md", "The embedded engine")
        script, cost = re.findall(r"^```json\n(.*?)^```$", told, re.M | re.S)
        file = tmp_path / "file"
        file.write_text(script, encoding="utf-8")
        playback = read_playback(file)
        assert len(playback) == 1
        first = playback.answer(first_user="please fix the bug", answers=0)
        assert first is not None
        assert [call.name for call in first.tool_calls] == ["bash"]
        assert json.loads(first.tool_calls[0].text()) == {"command": "ls"}
        file.write_text(cost, encoding="utf-8")
        assert read_cost(file) == CPU_2CORE


def test_what_a_module_is_for_is_said_in_a_whole_sentence() -> None:
    """A title before a colon tells nothing: what follows it does."""
    drawn = page("architecture.md").partition("<!-- drawn: modules -->")[2]
    assert re.findall(r"^- .*:$", drawn, re.M) == []
