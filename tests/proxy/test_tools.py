"""Tool calls as events name them."""

from __future__ import annotations

import json

import pytest

from agentsched.proxy.answer import AnsweredCall
from agentsched.proxy.tools import tool_call, tool_name


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"command": "git status"}, "Bash git"),
        ({"command": "cd /tmp/x && git log"}, "Bash git"),
        (
            {"command": "  cd a; cd b && FOO=1 BAR='' sudo time timeout 5 /usr/bin/pytest -q"},
            "Bash pytest",
        ),
        ({"cmd": ["bash", "-lc", "make test"]}, "Bash make"),
        ({"cmd": ["ls", "-l"]}, "Bash ls"),
        ({"command": ["only"]}, "Bash only"),
        ({"command": []}, "Bash"),
        ({"command": ""}, "Bash"),
        ({"command": "'quoted'"}, "Bash"),
        ({"command": 5}, "Bash"),
        ({"other": "x"}, "Bash"),
        ({"command": "x" * 500}, f"Bash {'x' * 64}"),
        ([], "Bash"),
    ],
)
def test_the_first_command_word(arguments: object, named: str) -> None:
    assert tool_name("Bash", json.dumps(arguments)) == named


@pytest.mark.parametrize("arguments", ["", "{", '{"command": "\ud800"}', "x" * 70_000])
def test_what_cannot_be_read(arguments: str) -> None:
    assert tool_name("Bash", arguments) == "Bash"


def test_names_are_bounded() -> None:
    call = AnsweredCall(call_id="c", name="n" * 500, arguments="{}")
    assert tool_call(call).tool == "n" * 64


def test_much_space_takes_no_time() -> None:
    assert tool_name("Bash", json.dumps({"command": " " * 60_000 + "'"})) == "Bash"
    assert tool_name("Bash", json.dumps({"command": "a=" * 30_000})) in ("Bash", "Bash a")


def test_names_do_not_steer_terminals() -> None:
    assert (
        tool_name("\x1b]0;owned\x07 a\n\u202eb", '{"command": "git status"}') == "]0;owned ab git"
    )
