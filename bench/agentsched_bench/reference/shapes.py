"""JSON Schemas, out of the code's types; of answers that are none, out of answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Final

import msgspec

from agentsched.config import EngineConfig
from agentsched.config_limits import TenantConfig
from agentsched.dashboard.shapes import Frame
from agentsched.dashboard.timeline import Timeline
from agentsched.proxy import forms
from agentsched.proxy.tool_reports import ToolReport
from agentsched.proxy.verbs import _Wanted
from agentsched_graphs.snapshot import Snapshot
from agentsched_graphs.workflow import _File

#: Objects that are maps: their keys are names, not fields. By the path of keys that leads there.
MAPS: Final = frozenset(
    {
        "active", "available", "clients", "conversations", "engines", "first", "ignored", "next",
        "next_tools", "params", "policies", "steps", "tenants", "tools", "pools", "evidence",
        "lineages", "rejects", "classes", "config", "waits_for",
    }
)  # fmt: skip
#: Answers that are of one type: a recording would lack what it happened not to hear.
ANSWERS: Final[Mapping[tuple[str, str], type[msgspec.Struct] | UnionType]] = {
    ("GET", "/overview"): Frame,
    ("GET", "/programs"): forms.ProgramList,
    ("GET", "/programs/{program}"): forms.ShownProgram,
    ("GET", "/programs/{program}/graph"): Snapshot,
    ("GET", "/programs/{program}/timeline"): Timeline,
    ("POST", "/plan{path}"): forms.Plan,
    ("GET", "/engines"): forms.EngineList,
    ("GET", "/engines/{engine}"): forms.ShownEngine,
    ("GET", "/statistics"): forms.Statistics,
}
#: Answers of one of several types have the union's name.
_UNIONS: Final[Mapping[UnionType, str]] = {forms.Plan: "Plan"}
_TEMPLATE: Final = "#/components/schemas/{name}"
_SAID: Final = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "object"}]}
#: Parts of answers that a recording would not tell all of: turns as the journal has them, which
#: say their kind first.
_PARTS: Final[Mapping[str, Any]] = {
    "event": _SAID,
    "commands": {"type": "array", "items": _SAID},
}
_JSON: Final = {bool: "boolean", int: "integer", float: "number", str: "string"}


def name_of(answer: type[msgspec.Struct] | UnionType) -> str:
    """What an answer is called here that is made of one type, or of one of several."""
    return _UNIONS[answer] if isinstance(answer, UnionType) else answer.__name__


def bodies() -> dict[str, Any]:
    """Schemas of what is sent, and of answers that are types, by the names that are used here."""
    schemas, found = msgspec.json.schema_components(
        [*_UNIONS, ToolReport, _Wanted, _File, *ANSWERS.values()], ref_template=_TEMPLATE
    )
    report = {"$ref": "#/components/schemas/ToolReport"}
    many = {"type": "array", "items": report, "maxItems": 1_000}
    named = {name.removeprefix("_"): _renamed(schema) for name, schema in found.items()}
    named |= dict(zip(_UNIONS.values(), schemas, strict=False))
    named["Policies"] = named.pop("Wanted")
    named["Workflow"] = named.pop("File")
    batch = {"type": "object", "properties": {"events": many}, "required": ["events"]}
    named["ToolReports"] = {"anyOf": [report, many, batch]}
    model = _TEMPLATE.replace("name", "model")
    named["Engine"] = EngineConfig.model_json_schema(ref_template=model)
    named["Tenant"] = TenantConfig.model_json_schema(ref_template=model)
    for name in ("Engine", "Tenant"):
        named |= named[name].pop("$defs", {})
    named["Login"] = {
        "type": "object",
        "properties": {"key": {"type": "string"}},
        "required": ["key"],
    }
    named["Request"] = {"type": "object", "description": "A request of the data plane."}
    named["Error"] = answer_of(
        [{"error": {"message": "", "type": "", "param": None, "code": "unknown_program"}}]
    )
    # As it is read again: lists, no tuples.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(named))
    return plain


def _renamed(schema: Any) -> Any:
    """Private types' names without the underscore, also where they are referred to."""
    if isinstance(schema, dict):
        renamed = {key: _renamed(value) for key, value in schema.items()}
        if "$ref" in renamed:
            renamed["$ref"] = renamed["$ref"].replace("/_", "/")
        if "title" in renamed:
            renamed["title"] = renamed["title"].lstrip("_")
        return renamed
    return [_renamed(value) for value in schema] if isinstance(schema, list) else schema


def _known(key: str, objects: list[dict[str, Any]]) -> list[Any]:
    """What these objects say under a key; how many seconds may not have been known by any."""
    said = [value[key] for value in objects if key in value]
    return [*said, 0.5] if key.endswith("_s") and set(map(_kind, said)) == {"null"} else said


def answer_of(values: Iterable[Any], *, is_map: bool = False) -> dict[str, Any]:
    """The schema that all these answers fit: fields that some lack are optional.

    Measures may be unknown, whether or not one was: they may be null. What was never known at all
    may be anything, but for seconds, which fields called `..._s` are.
    """
    values = list(values)
    kinds = {_kind(value) for value in values}
    if kinds <= {"null"}:
        return {}
    if "number" in kinds:
        kinds = (kinds - {"integer"}) | {"null"}
    schema: dict[str, Any] = {"type": sorted(kinds) if len(kinds) > 1 else next(iter(kinds))}
    objects = [value for value in values if isinstance(value, dict)]
    lists = [value for value in values if isinstance(value, list)]
    if objects and is_map:
        inner = [value for value_of in objects for value in value_of.values()]
        schema["additionalProperties"] = answer_of(inner) if inner else True
    elif objects:
        keys = sorted({key for value in objects for key in value})
        schema["properties"] = {
            key: _PARTS.get(key) or answer_of(_known(key, objects), is_map=key in MAPS)
            for key in keys
        }
        schema["required"] = [key for key in keys if all(key in value for value in objects)]
        schema["additionalProperties"] = False
    if inner := [item for items in lists for item in items]:
        schema["items"] = answer_of(inner)
    return schema


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else _JSON[type(value)]
