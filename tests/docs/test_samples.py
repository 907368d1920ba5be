"""Samples on the pages are parts of files that tests run, or commands that exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from agentsched.cli.root import app
from agentsched.cli.verbs import Verb
from agentsched.config import Config

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
FENCE = re.compile(r"^(?P<mark>```+)(?P<head>[^\n`]*)\n(?P<body>.*?)^(?P=mark)\s*$", re.M | re.S)
#: Places where whole files of other people's formats, or of the reader's, stand for themselves.
NAMED = re.compile(r'title="(?P<path>[^"]+)"')


def fences() -> Iterator[tuple[Path, str, str]]:
    """Every fenced block: page, what stands behind the mark, and what is in it."""
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
            yield page, fence["head"].strip(), fence["body"]


def named() -> list[tuple[str, str, str]]:
    found = []
    for page, head, body in fences():
        if title := NAMED.search(head):
            found.append((page.name, title["path"], body))
    return found


@pytest.mark.parametrize(("page", "path", "body"), named(), ids=lambda value: str(value)[:40])
def test_a_sample_is_a_part_of_its_file(page: str, path: str, body: str) -> None:
    assert body in (ROOT / path).read_text(encoding="utf-8"), f"{page} is not as {path} is"


def test_examples_are_run_by_tests_and_shown_on_a_page() -> None:
    tests = "".join(p.read_text() for p in (ROOT / "tests/examples").glob("*.py"))
    pages = "".join(page.read_text() for page in PAGES)
    for path in (ROOT / "examples").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.name in tests, f"no test runs {path.name}"
            assert f"examples/{path.relative_to(ROOT / 'examples')}" in pages, path.name


def commands() -> list[tuple[str, str]]:
    """Lines that call the program, in blocks of shell and of nothing in particular."""
    found = []
    for page, head, body in fences():
        if head.split(" ")[0] not in ("sh", "console", "bash", ""):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line.startswith("agentsched ") and "]" not in line:
                found.append((page.name, line))
    return list(dict.fromkeys(found + named_in_prose()))


def named_in_prose() -> list[tuple[str, str]]:
    """What a sentence calls a command: `agentsched ...`, with options or without."""
    found = []
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for span in re.finditer(r"`(agentsched [^`]+)`", prose):
            line = " ".join(span[1].split()).removesuffix(" ...")
            if "COMMAND" not in line and "]" not in line:
                found.append((page.name, line))
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: str(value)[:60])
def test_a_command_and_its_options_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    # What the line does with the output is the shell's.
    words = list(takewhile(lambda word: word not in ("|", "&&", "&", ">", "<"), words))
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        child = command.commands.get(words[0])
        assert child is not None, f"{page}: {line}"
        command = child.load() if isinstance(child, Verb) else child
        words = words[1:]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert [option for option in given if option not in known] == [], f"{page}: {line}"


#: Pages whose TOML is the proxy's configuration; elsewhere it is another file's.
CONFIGURED = ("bus.md", "security.md", "several-replicas.md", "storage.md", "telemetry.md")


@pytest.mark.parametrize(
    "body",
    [body for page, head, body in fences() if head == "toml" and page.name in CONFIGURED],
    ids=lambda body: body.split()[0],
)
def test_configurations_are_read(body: str) -> None:
    given = tomllib.loads(body)
    Config.model_validate(given | {"engines": [{"url": "http://127.0.0.1:8000"}]})
