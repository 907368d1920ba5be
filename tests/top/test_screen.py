"""Frames as lines: they fit, they say what matters, keys change what is shown."""

from __future__ import annotations

import os

import pytest
from msgspec.structs import replace
from top_frames import ENGINE, SIX, made, program, sample, tenant

from agentsched.dashboard.shapes import Frame, GoneReplica, Replicas
from agentsched.top.keys import Keys, press
from agentsched.top.screen import SORTS, View, chosen, everything, lines, shares, span, tokens


def text(frame: Frame, view: View | None = None, width: int = 80, height: int = 24) -> str:
    return "\n".join(
        line.plain for line in lines(frame, view or View(), width=width, height=height)
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 50), (40, 8)])
@pytest.mark.parametrize("count", [0, 1, 6, 500])
def test_fits_any_terminal(width: int, height: int, count: int) -> None:
    frame = made(*(SIX * 100)[:count])
    for view in (View(), View(is_help=True), View(filter="red"), View(offset=10**9)):
        shown = lines(frame, view, width=width, height=height)
        assert len(shown) == height
        assert max(line.cell_len for line in shown) <= width


def test_says_what_matters() -> None:
    shown = text(made(*SIX))
    assert "1/1 engines" in shown
    assert "oldest 4.5 s of 2 min" in shown
    assert "cached 75%" in shown
    assert "contended" in shown
    assert "200%" in shown  # wanted
    assert "memory" in shown
    assert "for bash" in shown
    # red got 300 of 400, blue 100.
    assert "75%" in next(line for line in shown.splitlines() if line.startswith("red "))


def test_what_no_engine_said_is_not_shown_as_said() -> None:
    frame = made(*SIX)
    partly = replace(frame.overview, untold_tokens_total=400)
    assert "cached about 75% (engines tell of 60%)" in text(replace(frame, overview=partly))


def test_who_waits_comes_first() -> None:
    frame = made(*SIX)
    assert [r.program[4:5] for r in chosen(frame, View())] == ["b", "f", "c", "d", "a", "e"]
    assert [r.program[4:5] for r in chosen(frame, View(sort="wait"))][:2] == ["f", "b"]
    assert chosen(frame, View(sort="context"))[0].program == "red/d"
    assert chosen(frame, View(sort="steps"))[0].program == "red/c"


def test_a_lost_engine_says_why() -> None:
    gone = ENGINE | {"engine": "gpu-9", "is_up": False, "last_error": "connection refused"}
    assert "down: connection refused" in text(made(engines=[gone]))
    assert "has not answered yet" in text(made(engines=[gone | {"last_error": ""}]))


def test_words_of_others_do_not_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x1b[2J\x1b[1;1Hall engines up\nand well"
    down = ENGINE | {"engine": "gpu-9", "is_up": False, "last_error": evil}
    frame = made(program("a", "paused", tool=evil), engines=[down])
    shown = lines(frame, View(), width=200, height=24)
    assert len(shown) == 24
    whole = everything(frame, View(), width=200)
    assert all(line.plain.isprintable() for line in (*shown, *whole))
    assert sum("�[1;1Hall engines up�and well" in line.plain for line in whole) == 2


def test_an_engine_that_answers_nothing_says_so() -> None:
    still = ENGINE | {"engine": "gpu-9", "silent_since": 107.5}
    head, *rest = text(made(engines=[still])).splitlines()
    assert "1/1 engines  1 silent" in head
    [row] = [line for line in rest if line.startswith("gpu-9")]
    assert row.endswith("  silent 12 s")
    drained = still | {"is_draining": True, "is_up": False}
    assert "  silent 12 s  draining" in text(made(engines=[drained]), width=100)
    assert "silent" not in text(made(*SIX))


def test_replicas_that_are_gone_or_out_of_reach_stand_out() -> None:
    frame = made()
    assert "replica" not in text(frame)
    known = Replicas(replica="replica-1", is_connected=True, others=("a", "b"), gone=())

    def said(replicas: Replicas) -> str:
        overview = replace(frame.overview, replicas=replicas)
        return text(replace(frame, overview=overview), width=120).splitlines()[0]

    assert said(known).endswith("replica-1 + 2")
    gone = (GoneReplica(replica="replica-0", since=1.0),)
    assert said(replace(known, others=(), gone=gone)).endswith("replica-1 + 0 gone: replica-0")
    assert said(replace(known, is_connected=False)).endswith("no broker")


def test_keys() -> None:
    view, frame = View(), made(*SIX * 20)
    text(frame, view)
    for key, wanted in (("j", 1), ("down", 2), ("k", 1), ("G", 120 - view.page), ("g", 0)):
        press(key, view)
        text(frame, view)
        assert view.offset == wanted
    for sort in (*SORTS[1:], SORTS[0]):
        press("s", view)
        assert view.sort == sort
    assert press("r", view) == "look"
    assert press("q", view) == "quit"
    press("p", view)
    assert view.is_paused
    press("?", view)
    assert "agentsched top" in text(frame, view)


def test_a_key_that_means_nothing_is_no_escape() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"\x1b[Cs\x1bOP\x1b[3~\x1b[15;2~\x1b[A\x1bj")
        assert Keys(read).wait(0) == ["s", "up", "escape", "j"]
    finally:
        os.close(read)
        os.close(write)


def test_filter_is_typed() -> None:
    view, frame = View(), made(*SIX)
    for key in ("/", "w", "q", "rub", "a", "i", "t"):
        assert press(key, view) == ""
    assert "/wait_" in text(frame, view)
    press("enter", view)
    assert view.filter == "wait"
    assert {row.state for row in chosen(frame, view)} == {"waiting"}
    press("escape", view)
    assert len(chosen(frame, view)) == 6


def test_all_of_it_for_a_pipe() -> None:
    shown = everything(made(*SIX * 20), View(), width=80)
    assert sum("waiting" in line.plain for line in shown[10:]) == 40


def test_a_pipe_gets_every_engine_and_tenant() -> None:
    engines = [ENGINE | {"engine": f"gpu-{i}"} for i in range(9)]
    frame = made(engines=engines, tenants=[tenant(f"team-{i}") for i in range(8)])
    words = [line.plain.partition(" ")[0] for line in everything(frame, View(), width=80)]
    names = [*(f"gpu-{i}" for i in range(9)), *(f"team-{i}" for i in range(8))]
    assert [word for word in words if word.startswith(("gpu-", "team-"))] == names
    assert "3 more" in text(frame).splitlines()
    many = everything(replace(frame, tenants_total=60), View(), width=80)
    assert "52 more" in [line.plain for line in many]


def test_states_are_said_to_be_of_those_that_are_told() -> None:
    frame = made(*SIX)
    assert "at rest" in text(frame).splitlines()[1]
    assert "latest" not in text(frame)
    many = replace(frame, programs_total=5_000)
    [line] = [line for line in text(many, width=100).splitlines() if line.startswith("programs")]
    assert line == (
        "programs 5000: 2 waiting  1 computing  1 pinned  1 paused  1 at rest  of the latest 6"
    )


def test_shares_need_two_samples() -> None:
    assert shares(()) == {}
    assert shares(made().history[:1]) == {}
    assert shares(made().history) == {"red": 0.75, "blue": 0.25}


def test_who_comes_among_the_busiest_did_not_get_all_of_it_now() -> None:
    """A sample has the twelve busiest: what another had by then is not known."""
    old = {f"t{i:02}": 1e6 for i in range(12)}
    grown = {name: value + 1_000 for name, value in old.items() if name != "t11"}
    came = [sample(60, **old), sample(90, **grown, late=1e6), sample(120, **grown, late=1e6 + 1e3)]
    got = shares(made(history=came).history)
    assert got["late"] == got["t00"] == pytest.approx(1 / 12)
    few = [sample(60, red=100), sample(120, red=200, new=100)]
    assert shares(made(history=few).history) == {"red": 0.5, "new": 0.5}


def test_who_sees_itself_alone_is_not_told_that_it_got_all() -> None:
    hidden = {"running_steps": None, "waiting_steps": None}
    own = [sample(at, red=at) | hidden for at in (60, 120)]
    assert shares(made(history=own).history) == {}
    assert "100%" not in text(made(history=own))


def test_who_may_not_see_all_is_shown_no_zeros_for_it() -> None:
    names = ("running_steps", "held_tokens", "pinned_tokens", "pins", "wanted_tokens", "kv_tokens")
    frame = made(engines=[ENGINE | {"engine": "gpu-1"} | dict.fromkeys(names)])
    hidden = {"rejected_total": None, "retried_total": None, "policy_errors_total": None}
    shown = text(replace(frame, overview=replace(frame.overview, **hidden)))
    assert "rejected" not in shown
    [line] = [line for line in shown.splitlines() if line.startswith("gpu-1")]
    assert (
        line.split(maxsplit=1)[1].strip()
        == "what it holds and computes is for operators  contended"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0.0123, "12 ms"),
        (5.25, "5.2 s"),
        (61, "61 s"),
        (600, "10 min"),
        (7300, "2.0 h"),
    ],
)
def test_spans(value: float | None, said: str) -> None:
    assert span(value) == said


def test_tokens() -> None:
    assert [tokens(n) for n in (999, 12_345, 1_234_567)] == ["999", "12.3k", "1.23M"]
