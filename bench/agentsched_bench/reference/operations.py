"""The operations of the control plane in words: what each is for, takes, and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

BASE: Final = "/agentsched/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `answers`: status -> what it means."""

    says: str
    tag: str
    #: Query parameter -> what it is.
    query: dict[str, str] = field(default_factory=dict)
    #: Name of the schema of its body.
    body: str | None = None
    answers: dict[int, str] = field(default_factory=lambda: {200: "Done."})
    #: What else than JSON it answers with.
    media: str = "application/json"
    #: A scope of the key that is needed, where keys are.
    scope: str = "read"


_UNKNOWN_PROGRAM: Final = {200: "Found.", 404: "No live program of yours has this id."}
_UNTOLD_PROGRAM: Final = {200: "Found.", 404: "No program of yours has this id, live or lately."}
_UNKNOWN_ENGINE: Final = {200: "Found.", 404: "No engine has this name."}

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("GET", "/programs"): Operation(
        tag="Programs",
        says="Live programs, the latest first.",
        query={
            "limit": "so many at most (100, up to 1000)",
            "offset": "so many are left out",
            "tenant": "only this tenant's",
            "state": "only those that do this: running, waiting, pinned, paused or idle",
            "agent": "only this kind of agent's",
        },
        answers={200: "Done.", 400: "No such limit, offset or state."},
    ),
    ("GET", "/programs/{program}"): Operation(
        tag="Programs",
        says="A program: its state, conversations with their pins, live steps and forecast.",
        answers=_UNKNOWN_PROGRAM,
    ),
    ("GET", "/programs/{program}/story"): Operation(
        tag="Programs",
        says="What happened to it lately and what was decided, oldest first; also for a while "
        "after its end.",
        answers=_UNTOLD_PROGRAM,
    ),
    ("GET", "/programs/{program}/graph"): Operation(
        tag="Programs",
        says="Its execution graph, also for a while after its end.",
        query={"format": "json, mermaid or dot (json)"},
        answers=_UNKNOWN_PROGRAM | {400: "No such format."},
    ),
    ("GET", "/programs/{program}/timeline"): Operation(
        tag="Programs",
        says="Its stretches of time: waited, computed, tool, paused, pinned. For the dashboard.",
        answers=_UNKNOWN_PROGRAM,
    ),
    ("POST", "/programs/{program}/release"): Operation(
        tag="Programs",
        says="End a program: its pins are released, its KV may go; running steps go on to their "
        "end.",
        answers=_UNKNOWN_PROGRAM,
        scope="data",
    ),
    ("POST", "/tools"): Operation(
        tag="Tools",
        says="Report tools' starts, progress and ends, and programs' ends; singly or in batches.",
        body="ToolReports",
        answers={
            202: "Taken: how many counted, and why others did not.",
            400: "No report.",
            413: "Too many at once.",
            429: "More than your tenant may report a second.",
        },
        scope="data",
    ),
    ("POST", "/plan{path}"): Operation(
        tag="Plan",
        says="Dry run: what would happen to this request now. `path` is the data plane's "
        "(`/v1/chat/completions`, ...), headers and body the request's own. Changes nothing.",
        body="Request",
        answers={
            200: "What would be decided.",
            400: "No request that could be sent.",
            404: "No such path is scheduled.",
            413: "It is too large.",
            429: "More than your tenant may ask for.",
        },
        scope="data",
    ),
    ("GET", "/engines"): Operation(tag="Engines", says="All engines with their state."),
    ("GET", "/engines/{engine}"): Operation(
        tag="Engines", says="One engine.", answers=_UNKNOWN_ENGINE
    ),
    ("GET", "/engines/{engine}/kv"): Operation(
        tag="Engines",
        says="Who holds how much of its cache, shared prefixes once. For the dashboard.",
        answers=_UNKNOWN_ENGINE | {403: "It tells of all tenants, so it is for operators."},
        scope="admin",
    ),
    ("POST", "/engines"): Operation(
        tag="Engines",
        says="Add an engine; it gets work once it answers.",
        body="Engine",
        answers={
            202: "It is looked at.",
            400: "No engine, or its host is not allowed.",
            409: "One of this name is there.",
        },
        scope="admin",
    ),
    ("DELETE", "/engines/{engine}"): Operation(
        tag="Engines",
        says="Remove an engine: nothing new goes there, it is forgotten when it is idle.",
        answers={202: "It is drained.", 404: "No engine has this name.", 409: "It is the last."},
        scope="admin",
    ),
    ("POST", "/engines/{engine}/drain"): Operation(
        tag="Engines", says="Send nothing new to it.", answers=_UNKNOWN_ENGINE, scope="admin"
    ),
    ("POST", "/engines/{engine}/undrain"): Operation(
        tag="Engines",
        says="Send work to it again.",
        answers=_UNKNOWN_ENGINE | {409: "It is about to be removed."},
        scope="admin",
    ),
    ("GET", "/tenants"): Operation(
        tag="Tenants", says="Tenants with their weights, limits and what they were served."
    ),
    ("PUT", "/tenants/{tenant}"): Operation(
        tag="Tenants",
        says="Set a tenant's weight and limits; what is left out is the default.",
        body="Tenant",
        answers={200: "In force.", 400: "Something is wrong with it.", 409: "Too many tenants."},
        scope="admin",
    ),
    ("GET", "/policies"): Operation(
        tag="Policies", says="The profile and policies in force, and what there is to choose from."
    ),
    ("POST", "/policies"): Operation(
        tag="Policies",
        says="Put another profile, other policies or another wait bound in force, at once.",
        body="Policies",
        answers={200: "In force.", 400: "Something is wrong with it; nothing has changed."},
        scope="admin",
    ),
    ("GET", "/workflows"): Operation(
        tag="Workflows",
        says="Declared workflows, by the agent that they are about.",
        scope="admin",
    ),
    ("POST", "/workflows"): Operation(
        tag="Workflows",
        says="Declare an agent's workflow, JSON or YAML; the newest word about an agent counts.",
        body="Workflow",
        answers={
            201: "It counts from now on.",
            400: "What is wrong with it, and where.",
            409: "No more are kept.",
        },
        scope="admin",
    ),
    ("POST", "/reload"): Operation(
        tag="Operation",
        says="Read the configuration file again; a wrong one changes nothing.",
        answers={200: "What has changed, and what waits for a restart.", 400: "It is wrong."},
        scope="admin",
    ),
    ("GET", "/statistics"): Operation(
        tag="Operation", says="Counts of the scheduler and of recognition, limits, the wait bound."
    ),
    ("GET", "/openapi.json"): Operation(
        tag="Operation",
        says="This description, as OpenAPI 3.1.",
        answers={200: "It, with an ETag."},
        scope="admin",
    ),
    ("GET", "/decisions"): Operation(
        tag="Operation",
        says="Decisions as they are made: server-sent events.",
        query={"program": "only turns about this program"},
        answers={200: "Done.", 503: "As many watch as may."},
        media="text/event-stream",
    ),
    ("GET", "/overview"): Operation(
        tag="Operation", says="What the dashboard's first page shows, in one answer."
    ),
    ("GET", "/feed"): Operation(
        tag="Operation",
        says="Changes of what the dashboard shows: server-sent events.",
        answers={200: "Done.", 503: "As many watch as may."},
        media="text/event-stream",
    ),
    ("GET", "/session"): Operation(
        tag="Session",
        says="Whether this browser is logged in, and as whom.",
        scope="none",
    ),
    ("POST", "/session"): Operation(
        tag="Session",
        says="Log a browser in with a key; sets a cookie.",
        body="Login",
        answers={200: "Logged in.", 401: "The key does not open the dashboard."},
        scope="none",
    ),
    ("DELETE", "/session"): Operation(tag="Session", says="Log the browser out.", scope="none"),
}
