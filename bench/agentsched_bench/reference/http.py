"""The control plane as OpenAPI 3.1, and the page that is drawn from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Final

import msgspec

from agentsched.version import __version__
from agentsched_bench.reference.operations import BASE, OPERATIONS, Operation
from agentsched_bench.reference.recording import Answers
from agentsched_bench.reference.shapes import ANSWERS, answer_of, bodies, name_of

_PLACE: Final = re.compile(r"{(\w+)}")
_PLACES: Final = {
    "program": "the program's id, as the answer's header `x-agentsched-program` says it",
    "engine": "the engine's name",
    "tenant": "the tenant's name",
    "path": "a path of the data plane, from its first slash on",
}
_SCOPES: Final = {"none": "nobody's"}

_HEAD: Final = """\
# HTTP

The data plane is the engines' own API: `POST /v1/chat/completions`, `/v1/completions`,
`/v1/responses`, `/v1/messages` are scheduled, everything else under `/v1/` is relayed as it is.
What the proxy adds to requests and answers is in [concepts](../concepts.md#what-an-answer-tells).
`GET /healthz`, `GET /readyz` and `GET /metrics` ([metrics](metrics.md)) are for probes.
`POST /finish_session?session_id=NAME` is vllm-router's: the program of this name is over, where it
is the caller's tenant's.

The control plane is JSON under `/agentsched/v1`, which goes before every path below. Drawn from
the routes, the types and recorded answers (`python -m agentsched_bench.reference`); as OpenAPI 3.1:
[openapi.json](openapi.json), which every proxy also serves: `GET /openapi.json`.

In mode `open` the control plane answers programs on the same machine as the operator, as long as
no `admin_key` is set. Everybody else needs `Authorization: Bearer KEY`: the `admin_key`, or one of
`[[auth.keys]]` (see [configuration](../configuration.md)) with the scope that is said below; a
tenant's key sees its own programs. `POST /tools` is as open as LLM calls are. Errors are OpenAI's
error object.
"""


def to_openapi(answers: Answers) -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        described = _operation(method, path, operation, answers.get((method, path), []))
        paths.setdefault(BASE + path, {})[method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentsched control plane",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8900"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(bodies().items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    method: str, path: str, operation: Operation, recorded: list[tuple[int, Any]]
) -> dict[str, Any]:
    words = [word for word in re.split(r"\W+", path) if word]
    described: dict[str, Any] = {
        "operationId": "_".join((method.lower(), *words)),
        "tags": [operation.tag],
        "summary": operation.says,
        "x-scope": operation.scope,
        "parameters": [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": _PLACES[name],
                "schema": {"type": "string"},
            }
            for name in _PLACE.findall(path)
        ]
        + [
            {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
            for name, text in operation.query.items()
        ],
        "responses": {
            str(status): _response(
                status, text, operation, recorded, made_of=ANSWERS.get((method, path))
            )
            for status, text in operation.answers.items()
        },
    }
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body}"}
        content = {"application/json": {"schema": schema}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _response(
    status: int,
    text: str,
    operation: Operation,
    recorded: list[tuple[int, Any]],
    *,
    made_of: type[msgspec.Struct] | UnionType | None,
) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": "#/components/schemas/Error"}
    if status < 300 and made_of is not None:
        schema = {"$ref": f"#/components/schemas/{name_of(made_of)}"}
    elif status < 300:
        seen = [answer for given, answer in recorded if given == status]
        schema = answer_of(seen) if seen else {}
    media = operation.media if status < 300 else "application/json"
    return {"description": text, "content": {media: {"schema": schema}}}


def to_page(openapi: Mapping[str, Any]) -> str:
    """The page, as Markdown."""
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in openapi["paths"].items():
        for method, described in methods.items():
            row = (method.upper(), path, described)
            by_tag.setdefault(described["tags"][0], []).append(row)
    lines = [_HEAD]
    for tag, rows in by_tag.items():
        lines += [f"## {tag}", ""]
        for method, path, described in rows:
            lines += _entry(method, path, described)
    lines += ["## Bodies", ""]
    for name, schema in openapi["components"]["schemas"].items():
        lines += _body(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _entry(method: str, path: str, described: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path.removeprefix(BASE)}`"
    yield ""
    scope = described["x-scope"]
    needs = "" if scope == "none" else f" Scope: `{scope}`."
    yield described["summary"] + needs
    yield ""
    for parameter in described["parameters"]:
        yield f"- `{parameter['name']}` ({parameter['in']}): {parameter['description']}"
    if "requestBody" in described:
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rpartition("/")[2]
        yield f"- body: [{name}](#{name.lower()})"
    for status, response in described["responses"].items():
        fields = _fields(response)
        yield f"- {status}: {response['description']}{fields}"
    yield ""


def _fields(response: Mapping[str, Any]) -> str:
    """The fields of an answer, where it is an object."""
    for content in response["content"].values():
        schema = content["schema"]
        name = schema.get("$ref", "").rpartition("/")[2]
        if name and name != "Error":
            return f" It is a [{name}](#{name.lower()})."
        fields = schema.get("properties")
        if fields:
            return " Fields: " + ", ".join(f"`{name}`" for name in fields) + "."
    return ""


def _body(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if text := schema.get("description"):
        yield " ".join(text.split())
        yield ""
    if name == "ToolReports":
        yield "One [ToolReport](#toolreport), a list of them, or an object with the list `events`."
        yield ""
    elif "anyOf" in schema or "enum" in schema:
        yield f"One of: {_type(schema)}."
        yield ""
    required = schema.get("required", ())
    rows = schema.get("properties", {})
    if rows:
        yield "| field | type | |"
        yield "|---|---|---|"
        for field, shape in rows.items():
            must = "required" if field in required else _default(shape)
            yield f"| `{field}` | {_type(shape)} | {must} |"
        yield ""


def _default(shape: Mapping[str, Any]) -> str:
    value = shape.get("default")
    return "" if value in (None, "", [], {}) else f"`{value}`"


def _type(shape: Mapping[str, Any]) -> str:
    if "$ref" in shape:
        name = str(shape["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in shape:
        return " or ".join(dict.fromkeys(_type(one) for one in shape["anyOf"]))
    if "enum" in shape:
        return ", ".join(f"`{word}`" for word in shape["enum"])
    if "$ref" in (items := shape.get("items") or {}):
        return f"list of {_type(items)}"
    kind = shape.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
