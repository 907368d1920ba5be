"""Renders the Helm chart into plain manifests: `python deploy/render.py [--check] [--set a.b=c]`.

Without options it writes kubernetes/agentsched.yaml, for clusters where Helm is not wanted. It
knows the part of Go's template language that the chart uses, and refuses everything else.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).with_name("helm") / "agentsched"
TARGET: Final = Path(__file__).with_name("kubernetes") / "agentsched.yaml"
HEAD: Final = """\
# The chart of deploy/helm with its default values, for clusters without Helm: drawn by
# deploy/render.py. Wants a Secret `agentsched` (docs/operations.md), and your engines' addresses.
#   kubectl create namespace agentsched && kubectl -n agentsched apply -f agentsched.yaml
"""
_ACTION: Final = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_TERM: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\||\(|\)|[^\s|()]+)')


class TemplateError(Exception):
    """The chart uses what this renderer does not know, or what is not there."""


@dataclass(slots=True)
class Block:
    """A piece of a template: text, an action, or a block with branches."""

    kind: str
    text: str = ""
    body: list[Block] = field(default_factory=list)
    other: list[Block] = field(default_factory=list)


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    position, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if match[1] else text
        yield "action", match[2]
        position, trim = match.end(), bool(match[3])
    rest = template[position:]
    yield "text", rest.lstrip() if trim else rest


def _parse(pieces: Iterator[tuple[str, str]], *, until: bool) -> tuple[list[Block], str]:
    """Blocks up to an `end` or `else`, and which of them it was."""
    blocks: list[Block] = []
    for kind, text in pieces:
        word, _, rest = text.partition(" ")
        if kind == "text":
            blocks.append(Block("text", text))
        elif word in ("if", "with", "range", "define"):
            body, ended_by = _parse(pieces, until=True)
            other = _parse(pieces, until=True)[0] if ended_by == "else" else []
            blocks.append(Block(word, rest, body, other))
        elif text in ("end", "else"):
            if not until:
                raise TemplateError(f"{text} without a beginning")
            return blocks, text
        elif not text.startswith("/*"):
            blocks.append(Block("action", text))
    if until:
        raise TemplateError("a block has no end")
    return blocks, ""


class Chart:
    """One chart with values of one release."""

    def __init__(
        self, chart: Path, values: Mapping[str, Any], *, name: str, namespace: str
    ) -> None:
        self._chart = chart
        meta = yaml.safe_load((chart / "Chart.yaml").read_text())
        self._root: dict[str, Any] = {
            "Values": values,
            "Chart": {k[0].upper() + k[1:]: v for k, v in meta.items()},
            "Release": {"Name": name, "Namespace": namespace, "Service": "Helm"},
        }
        self._defined: dict[str, list[Block]] = {}
        self._functions: dict[str, Callable[..., Any]] = {
            "default": lambda other, value: value or other,
            "include": lambda name, dot: self._include(name, dot),
            "nindent": lambda count, text: "\n" + _indent(count, text),
            "not": lambda value: not value,
            "quote": lambda value: json.dumps(str(value)),
            "toJson": json.dumps,
            "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
            "toYaml": lambda value: yaml.safe_dump(value, sort_keys=True).rstrip("\n"),
            "trimSuffix": lambda suffix, text: text.removesuffix(suffix),
            "trunc": lambda count, text: text[:count],
        }

    def render(self) -> dict[str, str]:
        """Each template's text by its name; empty ones are left out."""
        parsed = {}
        for path in sorted((self._chart / "templates").iterdir()):
            blocks, _ = _parse(_pieces(path.read_text()), until=False)
            for block in blocks:
                if block.kind == "define":
                    self._defined[json.loads(block.text)] = block.body
            if path.suffix != ".tpl":
                parsed[path.name] = blocks
        texts = {name: self._run(blocks, self._root) for name, blocks in parsed.items()}
        return {name: text for name, text in texts.items() if text.strip()}

    def _include(self, name: str, dot: Any) -> str:
        if name not in self._defined:
            raise TemplateError(f"nothing is defined as {name}")
        return self._run(self._defined[name], dot)

    def _run(self, blocks: Sequence[Block], dot: Any) -> str:
        return "".join(self._run_one(block, dot) for block in blocks)

    def _run_one(self, block: Block, dot: Any) -> str:
        match block.kind:
            case "text":
                return block.text
            case "define":
                return ""
            case "action":
                value = self._evaluate(block.text, dot)
                return "" if value is None else _shown(value)
        value = self._evaluate(block.text, dot)
        if not value:
            return self._run(block.other, dot)
        if block.kind == "range":
            return "".join(self._run(block.body, item) for item in value)
        return self._run(block.body, value if block.kind == "with" else dot)

    def _evaluate(self, text: str, dot: Any) -> Any:
        terms = [match[1] for match in _TERM.finditer(text)]
        value, rest = self._pipeline(terms, dot)
        if rest:
            raise TemplateError(f"cannot read {text!r}")
        return value

    def _pipeline(self, terms: list[str], dot: Any) -> tuple[Any, list[str]]:
        value: tuple[Any, ...] = ()
        while True:
            result, terms = self._command(terms, dot, piped=value)
            if not terms or terms[0] == ")":
                return result, terms
            value, terms = (result,), terms[1:]  # what follows is a pipe

    def _command(
        self, terms: list[str], dot: Any, *, piped: tuple[Any, ...]
    ) -> tuple[Any, list[str]]:
        head, given = terms[0], []
        rest = terms[1:] if head != "(" else terms
        while rest and rest[0] not in ("|", ")"):
            if rest[0] == "(":
                value, rest = self._pipeline(rest[1:], dot)
                given.append(value)
            else:
                given.append(self._term(rest[0], dot))
            rest = rest[1:]
        if head == "(":
            return given[0], rest
        if head == ".Files.Get":
            return (self._chart / given[0]).read_text(), rest
        if head in self._functions:
            return self._functions[head](*given, *piped), rest
        if given or piped:
            raise TemplateError(f"no function is called {head}")
        return self._term(head, dot), rest

    def _term(self, term: str, dot: Any) -> Any:
        if term[0] == '"':
            return json.loads(term)
        if term.lstrip("-").isdecimal():
            return int(term)
        if term[0] not in ".$":
            raise TemplateError(f"cannot read {term!r}")
        value = self._root if term[0] == "$" else dot
        for name in filter(None, term.lstrip("$").split(".")):
            if not isinstance(value, Mapping):
                raise TemplateError(f"{term}: nothing has a field {name}")
            value = value.get(name)
        return value


def _indent(count: int, text: str) -> str:
    return "\n".join(" " * count + line for line in text.split("\n"))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def values_of(chart: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The default values, with some changed: `{"autoscaling.enabled": False}`."""
    values: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    for path, value in (changes or {}).items():
        *tables, last = path.split(".")
        table = values
        for name in tables:
            table = table[name]
        if last not in table:
            raise TemplateError(f"there is no value {path}")
        table[last] = value
    return values


def render(
    changes: Mapping[str, Any] | None = None,
    *,
    name: str = "agentsched",
    namespace: str = "agentsched",
) -> dict[str, str]:
    """The chart's manifests by the name of their template."""
    chart = Chart(CHART, values_of(CHART, changes), name=name, namespace=namespace)
    return {k: v for k, v in chart.render().items() if k != "NOTES.txt"}


def plain() -> str:
    """All manifests of the default values in one text; nothing in it says Helm."""
    parts = []
    for text in render().values():
        lines = [line for line in text.strip().split("\n") if "managed-by: Helm" not in line]
        parts.append("\n".join(line.rstrip() for line in lines))
    return HEAD + "---\n" + "\n---\n".join(parts) + "\n"


def main() -> int:
    """Write the manifests; `--check`: only say whether they are stale; `--set`: print others."""
    arguments = sys.argv[1:]
    if "--set" in arguments:
        pairs = (a.partition("=") for a in arguments if a != "--set")
        print("\n---\n".join(render({k: yaml.safe_load(v) for k, _, v in pairs}).values()))
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == plain():
        return 0
    if "--check" in arguments:
        print(f"{TARGET} is out of date: run python deploy/render.py")
        return 1
    TARGET.write_text(plain(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
