"""Whose the code at hand is, where a framework says so too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

import agentsched
from agentsched.sdk import context
from agentsched.sdk.context import Program, find_with, opened_program

THREAD: ContextVar[str] = ContextVar("thread", default="")


def at_hand() -> Program | None:
    name = THREAD.get()
    return Program(id=name, parent=opened_program()) if name else None


@pytest.fixture(autouse=True)
def framework(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(context, "_FINDERS", [])
    find_with(at_hand)
    find_with(at_hand)
    assert len(context._FINDERS) == 1
    token = THREAD.set("")
    yield
    THREAD.reset(token)


def named() -> tuple[str | None, str | None]:
    headers = agentsched.current_headers()
    return headers.get("x-agentsched-program"), headers.get("x-agentsched-parent")


def test_a_thread_is_a_program_and_one_inside_another_its_sub_program() -> None:
    assert named() == (None, None)
    with agentsched.program(id="outer", tenant="red"):
        THREAD.set("thread")
        assert named() == ("thread", "outer")
        assert agentsched.current_headers()["x-agentsched-tenant"] == "red"
        with agentsched.program(id="inner"):
            assert named() == ("inner", "thread")
            with agentsched.program(id="innermost"):
                assert named() == ("innermost", "inner")
        assert named() == ("thread", "outer")
    THREAD.set("")
    assert named() == (None, None)


def test_a_program_of_the_threads_own_name_is_the_thread() -> None:
    with agentsched.program(id="t-1"):
        THREAD.set("t-1")
        assert named() == ("t-1", None)


async def test_threads_side_by_side() -> None:
    async def work(name: str) -> tuple[str | None, str | None]:
        THREAD.set(name)
        await asyncio.sleep(0)
        return named()

    assert await asyncio.gather(work("a"), work("b")) == [("a", None), ("b", None)]


def test_an_id_may_be_any_number() -> None:
    assert [Program(id=number).id for number in (0, 7)] == ["0", "7"]  # type: ignore[arg-type]
    assert Program(id="").id != Program(id="").id


def test_a_parent_can_be_named_and_denied() -> None:
    with agentsched.program(id="outer", tenant="red") as outer:
        assert Program(id="x").parent == "outer"
        assert Program(id="x", parent=None).parent is None
        assert Program(id="x", parent=None).tenant is None
        assert Program(id="y", parent=Program(id="x")).ancestors == {"outer", "x"}
        assert Program(id="outer", parent=outer).parent is None
