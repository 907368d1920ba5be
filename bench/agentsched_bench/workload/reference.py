"""The reference of the trace format and of `[workload]`, made from the types themselves.

    python -m agentsched_bench.workload.reference docs/traces.md

writes it between the two marks of that page; a test fails when the page is stale.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from pydantic import BaseModel

from agentsched_bench.workload import spec, trace

BEGIN: Final = "<!-- reference: begin (made by agentsched_bench.workload.reference) -->"
END: Final = "<!-- reference: end -->"
_STRUCTS: Final = (
    trace.Recording,
    trace.RecordedStep,
    trace.RecordedTool,
    trace.RecordedMessage,
    trace.RecordedToolCall,
    trace.ToolDefinition,
    trace.RecordedLoad,
    trace.TraceHeader,
)
_MODELS: Final[tuple[type[BaseModel], ...]] = (
    spec.Workload,
    spec.Source,
    spec.Tenant,
    spec.Background,
    spec.Poisson,
    spec.Bursty,
    spec.Regular,
    spec.RecordedArrivals,
    spec.Closed,
)


def reference() -> str:
    """All tables, as Markdown."""
    parts = ["### A line of a trace", *(_struct(kind) for kind in _STRUCTS)]
    parts += ["### `[workload]`", *(_model(kind) for kind in _MODELS)]
    return "\n\n".join(parts)


def _struct(kind: type[msgspec.Struct]) -> str:
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        (field.name, _type(hints[field.name]), _default(field))
        for field in msgspec.structs.fields(kind)
    ]
    return _table(kind, rows)


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return _shown(value)


def _model(kind: type[BaseModel]) -> str:
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        (name, _type(hints[name]), "required" if info.is_required() else _shown(info.default))
        for name, info in kind.model_fields.items()
    ]
    return _table(kind, rows)


def _shown(value: object) -> str:
    if value is None or value == () or value == {}:
        return "-"
    if isinstance(value, BaseModel):
        pairs = ", ".join(f"{k} = {v!r}".replace("'", '"') for k, v in value.model_dump().items())
        return f"`{{ {pairs} }}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(str(part) for part in value)}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _table(kind: type, rows: list[tuple[str, str, str]]) -> str:
    about = re.sub(r"\s+", " ", (kind.__doc__ or "").strip())
    lines = [f"**{kind.__name__}.** {about}", "", "| field | type | default |", "|---|---|---|"]
    lines += [f"| `{name}` | {type_} | {default} |" for name, type_, default in rows]
    return "\n".join(lines)


_WORDS: Final[dict[object, str]] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "any",
    types.NoneType: "",
}


def _type(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(part for part in map(_type, arguments) if part))
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin is tuple:
        inner = [_type(part) for part in arguments if part is not Ellipsis]
        return f"list of {inner[0]}" if arguments[-1] is Ellipsis else f"[{', '.join(inner)}]"
    if origin is dict:
        return "object"
    if isinstance(hint, type) and issubclass(hint, spec.Traffic):
        return " or ".join(f'`"{value}"`' for value in hint)
    return str(getattr(hint, "__name__", hint))


def updated(page: str) -> str:
    """The page with the reference made anew between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{reference()}\n\n{END}{tail}"


def main(arguments: Iterator[str]) -> None:
    """Write the reference into the page that is named."""
    path = Path(next(arguments))
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(iter(sys.argv[1:]))
