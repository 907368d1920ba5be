"""Whose call this is: the program and step that the code at hand runs for.

Kept in context variables, so asyncio tasks and `asyncio.to_thread` carry it; `carry` does it for
other threads. What goes over the wire are headers of LLM calls and reports of tools.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass, field
from functools import wraps
from types import EllipsisType
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from agentsched.sdk.reporter import KEYS, TENANT, Word, in_header, reporter

P = ParamSpec("P")
R = TypeVar("R")

_PREFIX: Final = "x-agentsched-"
_DEADLINE: Final = _PREFIX + "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is declared of an agent's step: the tools that its answer may call, and what follows.

    `expects` is how long each tool takes, in seconds.
    """

    name: str
    tools: tuple[str, ...] = ()
    expects: Mapping[str, float] = field(default_factory=dict)
    next: tuple[str, ...] = ()
    priority: int | None = None
    output_tokens: int | None = None
    deadline_s: float | None = None

    @property
    def resume_s(self) -> float | None:
        """How long the program is away after the answer, where the declaration tells.

        The longest of the tools that may come: one that is back early is a cheap surprise.
        """
        times = [self.expects[tool] for tool in self.tools or self.expects if tool in self.expects]
        return max(times, default=None)

    def headers(self) -> dict[str, str]:
        """What the proxy is told with an LLM call of this step."""
        given = {
            "resume": self.resume_s,
            "priority": self.priority,
            "output-tokens": self.output_tokens,
            "deadline": self.deadline_s,
        }
        # All digits: of a priority the last ones may be what counts.
        return {
            _PREFIX + name: f"{value:.15g}" for name, value in given.items() if value is not None
        }


class Program:
    """One agent's program, as its LLM calls name it.

    One that is opened inside another is its sub-program: it has its parent's tenant and no later
    deadline. `parent` says whose it is, where that is not the program at hand.
    """

    __slots__ = (
        "_deadline",
        "_is_closed",
        "agent",
        "ancestors",
        "credential",
        "id",
        "name",
        "parent",
        "tenant",
    )

    def __init__(
        self,
        *,
        id: str | None = None,
        tenant: str | None = None,
        agent: str = "",
        deadline_s: float | None = None,
        parent: Program | EllipsisType | None = ...,
    ) -> None:
        outer = current_program() if isinstance(parent, EllipsisType) else parent
        # Ids of people's own are numbers and UUIDs as well, whatever the hint says.
        self.id = ("" if id is None else str(id)) or f"sdk-{secrets.token_hex(8)}"
        #: Its id as it goes over the wire.
        self.name = in_header(self.id)
        is_inside_itself = outer is not None and self.id in (outer.id, *outer.ancestors)
        self.parent = outer.id if outer is not None and not is_inside_itself else None
        #: Ids of all programs that this one is inside of.
        self.ancestors: frozenset[str] = frozenset()
        if outer is not None:
            self.ancestors = (outer.ancestors | {outer.id}) - {self.id}
        self.tenant: str | None = tenant or (outer.tenant if outer is not None else None)
        self.agent = agent
        #: What its latest LLM call said of whose it is: reports come from the same tenant.
        self.credential: Mapping[str, str] = {}
        if outer is not None:
            is_same_tenant = self.tenant == outer.tenant
            told = outer.credential.items()
            self.credential = {n: v for n, v in told if is_same_tenant or n != TENANT}
        #: The same program, opened again inside of itself, ends with the outer one.
        self._is_closed = is_inside_itself
        #: On the clock of `time.monotonic`.
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        if outer is not None and outer._deadline is not None:
            own = self._deadline
            self._deadline = outer._deadline if own is None else min(own, outer._deadline)

    @property
    def deadline_s(self) -> float | None:
        """Seconds until it should be done; None for no deadline, never below a millisecond."""
        left = None if self._deadline is None else self._deadline - time.monotonic()
        return None if left is None else max(0.001, left)

    def headers(self) -> dict[str, str]:
        """What the proxy is told with each LLM call of this program."""
        deadline = self.deadline_s
        given = {
            "program": self.name,
            "tenant": self.tenant,
            "parent": self.parent,
            "agent": self.agent,
            "deadline": None if deadline is None else f"{deadline:.3f}",
        }
        return {_PREFIX + name: in_header(value) for name, value in given.items() if value}

    def sender(self) -> dict[str, str]:
        """Headers that say whose program this is, for reports about it."""
        own = {TENANT: in_header(self.tenant)} if self.tenant else {}
        return own | dict(self.credential)

    def sent_with(self, headers: Mapping[str, str]) -> None:
        """An LLM call of it goes out with these headers."""
        self.credential = {n: said for n in (*KEYS, TENANT) if (said := headers.get(n))}

    def go_on(self) -> None:
        """It is opened again: word of its end that still waits would end it in the middle."""
        word = _ENDS.pop((self.tenant, self.name), None)
        if word is not None:
            word.is_void = True

    def close(self) -> None:
        """Say that no step will follow; the proxy lets go of its KV. Done once."""
        if not self._is_closed:
            self._is_closed = True
            told = reporter()
            if told.is_on:
                said = _ENDS[self.tenant, self.name] = Word(event="closed", program=self.name)
                told.put(said, sender=self.sender())

    def __repr__(self) -> str:
        return f"Program({self.id!r})"


#: What was said of programs' ends, by their tenants and names, for as long as it may not be out.
_ENDS: Final[WeakValueDictionary[tuple[str | None, str], Word]] = WeakValueDictionary()


def put_back(variable: ContextVar[Any], token: Token[Any]) -> None:
    """Undo a `set`; nothing happens in another context than its own, where nothing was set.

    A block around a `yield` may be left in another one: a server runs each piece of a stream in
    some thread, and a stream that nobody reads to its end is closed by the event loop.
    """
    try:
        variable.reset(token)
    except ValueError:
        return


_PROGRAM: ContextVar[Program | None] = ContextVar("agentsched_program", default=None)
_STEP: ContextVar[Step | None] = ContextVar("agentsched_step", default=None)


#: Frameworks that have ids of their own: each says which program the code at hand runs for.
_FINDERS: list[Callable[[], Program | None]] = []


def find_with(finder: Callable[[], Program | None]) -> None:
    """For adapters: ask `finder`, too, whose the code at hand is. It is asked often."""
    if finder not in _FINDERS:
        _FINDERS.append(finder)


def opened_program() -> Program | None:
    """The program that `program()` opened around the code at hand; None outside any."""
    return _PROGRAM.get()


def current_program() -> Program | None:
    """The program that the code at hand runs for; None outside any.

    What was opened last: by `program()`, or by a framework whose adapter is in use.
    """
    opened = _PROGRAM.get()
    for finder in _FINDERS:
        found = finder()
        if found is None or (opened is not None and found.id in (opened.id, *opened.ancestors)):
            continue
        return found
    return opened


def current_step() -> Step | None:
    """What is declared of the step that runs; None outside any."""
    return _STEP.get()


def current_headers() -> dict[str, str]:
    """Headers that tell the proxy whose an LLM call at this point is.

    Empty outside any program, but for the tenant where `configure` or `AGENTSCHED_TENANT` names
    one: reports are sent as that tenant's, so calls are, too.
    """
    program, step, tenant = current_program(), _STEP.get(), reporter().settings.tenant
    headers = {_PREFIX + "tenant": in_header(tenant)} if tenant else {}
    if step is not None:
        headers |= step.headers()
    if program is None:
        return headers
    said = program.headers()
    # A step may be in more of a hurry than its program, and never in less.
    deadlines = [told[_DEADLINE] for told in (headers, said) if _DEADLINE in told]
    return headers | said | ({_DEADLINE: min(deadlines, key=float)} if deadlines else {})


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with the program at hand, for threads that do not inherit it.

    `pool.submit(carry(work), x)`: executors run what they are given in a context of their own. May
    be called from several threads at once.
    """
    context = copy_context()

    @wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        # A context can be entered by one thread at a time; copies cost next to nothing.
        return context.copy().run(function, *args, **kwargs)

    return carried
