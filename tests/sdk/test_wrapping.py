"""Scopes are open exactly while wrapped code runs, whatever kind of function it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextvars import ContextVar
from typing import Any

import pytest

from agentsched.sdk.wrapping import wrap

SEEN: ContextVar[str] = ContextVar("seen", default="outside")


class Scope:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.token: Any = None

    def start(self) -> None:
        self.log.append("start")

    def enter(self) -> None:
        self.token = SEEN.set("inside")

    def leave(self) -> None:
        SEEN.reset(self.token)

    def end(self, error: BaseException | None) -> None:
        self.log.append(f"end {type(error).__name__}" if error else "end")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def scoped(log: list[str]) -> Any:
    return lambda target: wrap(target, lambda args, kwargs: Scope(log))


def test_a_function(scoped: Any, log: list[str]) -> None:
    @scoped
    def work(a: int, *, b: int = 2) -> tuple[int, str]:
        """Says what it does."""
        return a + b, SEEN.get()

    assert work(1, b=3) == (4, "inside")
    assert SEEN.get() == "outside"
    assert (work.__name__, work.__doc__) == ("work", "Says what it does.")
    assert log == ["start", "end"]


def test_an_error_passes_and_is_told(scoped: Any, log: list[str]) -> None:
    @scoped
    def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        work()
    assert SEEN.get() == "outside"
    assert log == ["start", "end KeyError"]


async def test_a_coroutine_among_others(scoped: Any) -> None:
    met = asyncio.Event()

    @scoped
    async def work() -> str:
        met.set()
        await asyncio.sleep(0)
        return SEEN.get()

    async def bystander() -> str:
        await met.wait()
        return SEEN.get()

    assert await asyncio.gather(work(), bystander(), work()) == ["inside", "outside", "inside"]
    assert SEEN.get() == "outside"


async def test_a_cancelled_coroutine_ends(scoped: Any, log: list[str]) -> None:
    started = asyncio.Event()

    @scoped
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["start", "end CancelledError"]


def test_a_generator_does_not_leak_between_items(scoped: Any, log: list[str]) -> None:
    @scoped
    def work() -> Generator[str, str, str]:
        got = yield SEEN.get()
        assert SEEN.get() == "inside"
        try:
            yield got
        except ValueError as error:
            yield f"caught {error}"
        return "done"

    items = work()
    assert next(items) == "inside"
    assert SEEN.get() == "outside"
    assert items.send("sent") == "sent"
    assert items.throw(ValueError("thrown")) == "caught thrown"
    with pytest.raises(StopIteration) as stop:
        next(items)
    assert stop.value.value == "done"
    assert log == ["start", "end"]


def test_a_generator_that_is_left_is_closed_inside(scoped: Any, log: list[str]) -> None:
    closed = []

    @scoped
    def work() -> Generator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(SEEN.get())

    items = work()
    next(items)
    items.close()
    assert closed == ["inside"]
    assert SEEN.get() == "outside"
    assert log == ["start", "end"]


def test_an_error_of_a_generator_is_told(scoped: Any, log: list[str]) -> None:
    @scoped
    def work() -> Generator[int]:
        yield 1
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011  # which one is plain
        list(work())
    assert log == ["start", "end OSError"]


async def test_an_async_generator(scoped: Any, log: list[str]) -> None:
    @scoped
    async def work() -> AsyncGenerator[str, str]:
        got = yield SEEN.get()
        await asyncio.sleep(0)
        try:
            yield got
        except ValueError:
            yield f"caught {SEEN.get()}"

    items = work()
    assert await anext(items) == "inside"
    assert SEEN.get() == "outside"
    assert await items.asend("sent") == "sent"
    assert await items.athrow(ValueError()) == "caught inside"
    assert [item async for item in items] == []
    assert SEEN.get() == "outside"
    assert log == ["start", "end"]


async def test_an_async_generator_that_is_left(scoped: Any, log: list[str]) -> None:
    closed = []

    @scoped
    async def work() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            closed.append(SEEN.get())

    items = work()
    await anext(items)
    await items.aclose()
    assert closed == ["inside"]
    assert log == ["start", "end"]


def test_an_async_generator_that_outlives_its_loop_is_closed_once(
    scoped: Any, log: list[str]
) -> None:
    """The loop closes at its end what is left, and says so where that fails."""
    closed: list[str] = []
    failed: list[dict[str, Any]] = []
    left = []

    @scoped
    async def work() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(SEEN.get())

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: failed.append(told))
        left.append(work())
        await anext(left[0])

    asyncio.run(leave())
    assert failed == []
    assert closed == ["inside"]
    assert log == ["start", "end"]


def test_methods_and_classes(scoped: Any, log: list[str]) -> None:
    class Agent:
        name = "agent"

        @scoped
        def think(self) -> str:
            return f"{self.name} {SEEN.get()}"

        @scoped
        @classmethod
        def made(cls) -> str:
            return f"{cls.__name__} {SEEN.get()}"

        @staticmethod
        @scoped
        def plain() -> str:
            return SEEN.get()

    assert Agent().think() == "agent inside"
    assert Agent.made() == Agent().made() == "Agent inside"
    assert Agent.plain() == "inside"

    @scoped
    class Callable_:
        def __call__(self, x: int) -> tuple[int, str]:
            return x, SEEN.get()

    assert isinstance(Callable_, type)
    assert Callable_()(3) == (3, "inside")
    assert SEEN.get() == "outside"


@pytest.mark.parametrize("wrong", [3, None, type("Mute", (), {})])
def test_what_cannot_be_called(scoped: Any, wrong: object) -> None:
    with pytest.raises(TypeError):
        scoped(wrong)
