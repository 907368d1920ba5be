"""`program`, `agent_step` and `tool_call`: what agents' code says about itself."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar, overload
from uuid import UUID

from agentsched.sdk.context import _PROGRAM, _STEP, Program, Step, current_program, put_back
from agentsched.sdk.reporter import in_header, reporter
from agentsched.sdk.wrapping import wrap

#: What is decorated stays what it is: a function with its overloads, a class.
F = TypeVar("F", bound=Callable[..., Any])


class _Held:
    """A context variable that has a value exactly while code of the scope's own runs."""

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[Any], value: object) -> None:
        self._variable = variable
        self._value = value
        self._token: Token[Any] | None = None

    def start(self) -> None:
        """Nothing to tell."""

    def enter(self) -> None:
        self._token = self._variable.set(self._value)

    def leave(self) -> None:
        assert self._token is not None
        put_back(self._variable, self._token)

    def end(self, error: BaseException | None) -> None:
        """Nothing to tell."""


class _ProgramHeld(_Held):
    """A program that ends with the call."""

    __slots__ = ()

    def end(self, error: BaseException | None) -> None:
        assert isinstance(self._value, Program)
        self._value.close()


class program:  # it reads as a verb where it is used
    """Everything inside belongs to one program: `with`, `async with`, or a decorator.

        async with program(tenant="team-a", deadline_s=600) as p: ...

        @program(agent="reviewer")
        async def review(change): ...      # a program for each call

    `id`: the program's name where you have one; else one is made up. Inside another program it
    opens a sub-program.
    """

    def __init__(
        self,
        *,
        id: str | None = None,
        tenant: str | None = None,
        agent: str = "",
        deadline_s: float | None = None,
    ) -> None:
        self._made: dict[str, Any] = {
            "id": id,
            "tenant": tenant,
            "agent": agent,
            "deadline_s": deadline_s,
        }
        self._open: list[_ProgramHeld] = []

    def __call__(self, target: F) -> F:
        wrapped: F = wrap(target, self._held)
        return wrapped

    def _held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _ProgramHeld:
        opened = Program(**self._made)
        if self._made["id"] is not None:  # nobody opens one with a name that was made up again
            opened.go_on()
        return _ProgramHeld(_PROGRAM, opened)

    def __enter__(self) -> Program:
        if self._open:
            raise RuntimeError("this program is open already: call program() for another one")
        held = self._held((), {})
        self._open.append(held)
        held.enter()
        opened = _PROGRAM.get()
        assert opened is not None
        return opened

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        held = self._open.pop()
        held.leave()
        held.end(error)

    async def __aenter__(self) -> Program:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)


@overload
def agent_step(target: F, /) -> F: ...
@overload
def agent_step(
    *,
    name: str | None = None,
    tools: Sequence[str] = (),
    expects: Mapping[str, float] | None = None,
    next: Sequence[str] = (),
    priority: int | None = None,
    output_tokens: int | None = None,
    deadline_s: float | None = None,
) -> Callable[[F], F]: ...
def agent_step(
    target: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    tools: Sequence[str] = (),
    expects: Mapping[str, float] | None = None,
    next: Sequence[str] = (),
    priority: int | None = None,
    output_tokens: int | None = None,
    deadline_s: float | None = None,
) -> Any:
    """Mark a function that asks a model: a step of an agent's program.

    All of it is optional knowledge. `tools`: what the answer may call; `expects`: seconds that each
    of them takes; `next`: names of the steps that may follow; `output_tokens`: how long the answer
    will be; `priority`: smaller is sooner, among your own steps; `deadline_s`: seconds until the
    step should be done, of which and of the program's the sooner is sent. `name` is what `next`
    goes by, else the function's own. Functions of any kind, methods and classes with `__call__`
    (above `staticmethod` and `classmethod` or below). The step's declaration is found at
    `__agentsched_step__`.
    """

    times = _checked(expects or {})
    _check_names(tools=tools, next=next)

    def decorate(function: Any) -> Any:
        step = Step(
            name=name or _name_of(function),
            tools=tuple(tools),
            expects=times,
            next=tuple(next),
            priority=priority,
            output_tokens=output_tokens,
            deadline_s=deadline_s,
        )
        wrapped = wrap(function, lambda args, kwargs: _Held(_STEP, step))
        _mark(wrapped, step)
        return wrapped

    return decorate if target is None else decorate(target)


class _ToolScope:
    """One tool call: told when it starts and when it ends, where there is somebody to tell."""

    __slots__ = ("_began", "_call_id", "_expects", "_name", "_program")

    @property
    def program(self) -> Program | None:
        """Whose call it is; None where nobody is told."""
        return self._program

    def __init__(self, name: str, call_id: str, expects: float | None) -> None:
        self._name = name
        self._call_id = call_id
        self._expects = expects
        self._began = 0.0
        self._program: Program | None = None

    def start(self) -> None:
        if not reporter().is_on:
            return
        program = current_program()
        if program is None:
            return
        self._program = program
        self._began = time.monotonic()
        step = _STEP.get()
        expects = self._expects
        if expects is None and step is not None:
            expects = step.expects.get(self._name)
        is_time = expects is not None and 0 <= expects < float("inf")
        self._tell("started", expected_s=expects if is_time else None)

    def enter(self) -> None:
        """Nothing is different inside."""

    def leave(self) -> None:
        """Nor outside."""

    def end(self, error: BaseException | None) -> None:
        if self._program is not None:
            took = time.monotonic() - self._began
            self._tell("finished", took_s=round(took, 6), is_error=error is not None or None)

    def _tell(self, event: str, **said: object) -> None:
        assert self._program is not None
        report = {"event": event, "program": self._program.name, "tool": self._name}
        if self._call_id:
            report["call_id"] = str(self._call_id)
        given = {key: value for key, value in said.items() if value is not None}
        reporter().put(report | given, sender=self._program.sender())


class ToolCall:
    """What `tool_call` makes: a decorator, and a context manager of both kinds."""

    def __init__(self, name: str | None, call_id: str, expects_s: float | None) -> None:
        self._name = None if name is None else str(name)
        self._call_id = call_id
        self._expects = expects_s
        self._open: list[_ToolScope] = []
        self._lock = Lock()

    def __call__(self, target: F) -> F:
        name = self._name or _name_of(target)
        find = _finder(target, self._call_id)

        def opens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _ToolScope:
            return _ToolScope(name, find(args, kwargs), self._expects)

        wrapped: F = wrap(target, opens)
        return wrapped

    def __enter__(self) -> None:
        if self._name is None:
            raise TypeError("a tool call needs its tool's name: tool_call('bash')")
        scope = _ToolScope(self._name, self._call_id, self._expects)
        self._open.append(scope)
        scope.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left().end(error)

    def _left(self) -> _ToolScope:
        """The call that ends here. Tasks and threads may share a block; each has its program."""
        program = current_program()
        with self._lock:
            mine = (s for s in reversed(self._open) if s.program is program)
            scope = next(mine, self._open[-1])
            self._open.remove(scope)
        return scope

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)


@overload
def tool_call(target: F, /) -> F: ...
@overload
def tool_call(
    name: str | None = None, /, *, call_id: str = "", expects_s: float | None = None
) -> ToolCall: ...
@overload
def tool_call(*, name: str, call_id: str = "", expects_s: float | None = None) -> ToolCall: ...
def tool_call(
    target: Any = None,
    /,
    *,
    name: str | None = None,
    call_id: str = "",
    expects_s: float | None = None,
) -> Any:
    """Report a tool's start and end, so that the next step can be prepared meanwhile.

        @tool_call(name="bash", call_id="call_id")
        async def run(cmd, call_id): ...

        with tool_call("bash", call_id=call.id): ...

    `call_id`: around a block the model's id of the call; on a function the name of the argument
    that has it. Without it the oldest open call of that tool is meant. `expects_s`: how long it
    will take; else what the step that called it expects of this tool.
    """
    if callable(target) or isinstance(target, staticmethod | classmethod):
        return ToolCall(name, call_id, expects_s)(target)
    if target is not None and not isinstance(target, str):
        raise TypeError(f"neither a tool's name nor a function: {target!r}")
    return ToolCall(target if target is not None else name, call_id, expects_s)


def declared_workflow(name: str, *steps: Callable[..., Any], agent: str = "") -> dict[str, Any]:
    """The workflow that decorated steps declare, the first one first, as `serve` reads it.

    Raises:
        ValueError: one of them is not decorated with `agent_step`, or two have one name.
    """
    declared: dict[str, Any] = {}
    for function in steps:
        step = getattr(function, "__agentsched_step__", None)
        if not isinstance(step, Step):
            raise ValueError(f"{function!r} is no agent_step")
        if step.name in declared:
            raise ValueError(f"two steps are called {step.name!r}")
        tools = list(step.tools or step.expects)
        entry: dict[str, Any] = {"tools": tools, "next": list(step.next)}
        if step.resume_s is not None:
            entry["expected_s"] = step.resume_s
        declared[step.name] = entry
    if not declared:
        raise ValueError("a workflow has at least one step")
    shown: dict[str, Any] = {"name": name, "start": next(iter(declared)), "steps": declared}
    about = in_header(agent or name)  # as its calls name it
    return shown | ({"agent": about} if agent or about != name else {})


def _name_of(target: Any) -> str:
    inner = getattr(target, "__func__", target)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _checked(expects: Mapping[str, float]) -> Mapping[str, float]:
    wrong = [tool for tool, span in expects.items() if not 0 <= span < float("inf")]
    if wrong:
        raise ValueError(f"expects[{wrong[0]!r}] is no number of seconds: {expects[wrong[0]]!r}")
    return dict(expects)


def _check_names(**given: Sequence[str]) -> None:
    """A text is a sequence of texts, too, but its letters are not what was meant."""
    for argument, names in given.items():
        if isinstance(names, str):
            raise TypeError(f"{argument} is a list of names: write {argument}=[{names!r}]")


def _mark(wrapped: Any, step: Step) -> None:
    inner = getattr(wrapped, "__func__", wrapped)
    inner.__agentsched_step__ = step


def _finder(target: Any, argument: str) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
    """What takes the call's id out of the arguments."""
    if not argument:
        return lambda args, kwargs: ""
    # A bound method is called without its object, what is below a `classmethod` with its class.
    function = target.__func__ if isinstance(target, staticmethod | classmethod) else target
    function = function.__call__ if isinstance(function, type) else function
    parameters = inspect.signature(function).parameters
    if argument not in parameters:
        raise ValueError(f"{_name_of(target)} has no argument {argument!r} for the call's id")
    if parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY:
        return lambda args, kwargs: _text(kwargs.get(argument))
    place = list(parameters).index(argument)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return _text(kwargs.get(argument, args[place] if place < len(args) else None))

    return find


def _text(value: object) -> str:
    """Ids are numbers and UUIDs as well; what else may stand there is no id."""
    return str(value) if isinstance(value, str | int | UUID) else ""
