"""Replays recorded requests through `IdentityIndex` and counts what it got right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agentsched.model import Instant, StepClass, TenantId
from agentsched.model.time import SECOND
from agentsched.proxy.identity import Identity, IdentityIndex
from agentsched_bench.clients.readers import Recorded, families, read_client
from agentsched_bench.clients.restarting import Restarting

_TENANT = TenantId("default")
_SECRET = 0x5EED


class Score(msgspec.Struct):
    """One client's counts. A pair is (right, all).

    `steps`: working steps after a conversation's first that joined it; `starts`: sub-agents' first
    steps that joined their parent's program; `auxiliary`: titles and the like in the right program;
    `classes`: requests classed right; `conversations`: steps in their own conversation. `merged`
    counts requests that were put into a stranger's program, `forked` those put into
    the program whose history they share. `notes` name each thing that went wrong.
    """

    client: str
    requests: int = 0
    steps: tuple[int, int] = (0, 0)
    starts: tuple[int, int] = (0, 0)
    compactions: tuple[int, int] = (0, 0)
    auxiliary: tuple[int, int] = (0, 0)
    classes: tuple[int, int] = (0, 0)
    conversations: tuple[int, int] = (0, 0)
    retries: int = 0
    merged: int = 0
    forked: int = 0
    notes: list[str] = []


@dataclass(slots=True)
class _Tally:
    """What has been seen of one client while its requests go by."""

    score: Score
    family: dict[str, str]
    #: Our program -> the true program that it was first given to.
    owner: dict[str, str] = field(default_factory=dict)
    #: True program -> our program of its first working step.
    programs: dict[str, str] = field(default_factory=dict)
    #: True conversation -> our program and conversation of its latest step.
    latest: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)


def evaluate(
    directory: Path,
    *,
    with_ids: bool,
    gap_s: float = 1_200.0,
    is_joint: bool = False,
    restarts: bool = False,
) -> list[Score]:
    """Score every client file in `directory`.

    `gap_s` seconds lie between two cases of a client. With `is_joint` all clients share one index,
    as they would behind one proxy; else each has its own. With `restarts` the index is made anew
    before each request, of what a store would have kept.
    """
    files = sorted(directory.glob("*.jsonl.gz")) + sorted(directory.glob("*.jsonl"))
    fresh = Restarting if restarts else IdentityIndex
    index = fresh(secret=_SECRET)
    scores: list[Score] = []
    start_s = 0.0
    for path in files:
        requests = read_client(path)
        if not is_joint:
            index = fresh(secret=_SECRET)
        scores.append(replay(requests, index, with_ids=with_ids, gap_s=gap_s, start_s=start_s))
        start_s += 86_400.0
    return scores


def replay(
    requests: Sequence[Recorded],
    index: IdentityIndex,
    *,
    with_ids: bool,
    gap_s: float = 1_200.0,
    start_s: float = 0.0,
) -> Score:
    """Send one client's requests through an index, in order, each answered as recorded."""
    score = Score(client=requests[0].client if requests else "", notes=[])
    tally = _Tally(score, families(requests))
    now, case = start_s, ""
    pending: list[tuple[float, Recorded, Identity]] = []
    for request in requests:
        if request.case != case:
            _answer(pending, index, base=now)
            now, case = now + gap_s, request.case
        _answer(pending, index, base=now)
        identity = index.identify(
            request.parsed(with_ids=with_ids),
            request.sent_headers(with_ids=with_ids),
            tenant=_TENANT,
            now=_instant(now + request.at),
        )
        _count(tally, request, identity)
        # The mock answered within a few milliseconds, before the client's next request.
        pending.append((request.at, request, identity))
    _answer(pending, index, base=now)
    return score


def _answer(
    pending: list[tuple[float, Recorded, Identity]], index: IdentityIndex, *, base: float
) -> None:
    """Give the answers that are out."""
    for at, request, identity in pending:
        if request.answer is not None:
            index.answered(identity, request.answer, now=_instant(base + at))
        elif request.is_abandoned:
            index.abandoned(identity, now=_instant(base + at))
    pending.clear()


def _instant(at: float) -> Instant:
    return Instant(round(at * SECOND))


def _count(tally: _Tally, request: Recorded, identity: Identity) -> None:
    score, truth = tally.score, request.truth
    score.requests += 1
    is_class_right = truth.step_class is identity.step_class
    score.classes = _add(score.classes, is_class_right)
    if not is_class_right:
        _note(tally, request, f"classed {identity.step_class}, is {truth.step_class}")
    if truth.step_class in (StepClass.PROBE, StepClass.TOKEN_COUNT):
        return
    score.retries += identity.is_retry
    owner = tally.owner.setdefault(identity.program, truth.program)
    if owner != truth.program:
        if tally.family[owner] == tally.family[truth.program]:
            score.forked += 1
        else:
            score.merged += 1
            _note(tally, request, f"merged into {owner} by {identity.evidence}")
    _place(tally, request, identity)


def _place(tally: _Tally, request: Recorded, identity: Identity) -> None:
    score, truth = tally.score, request.truth
    key = (truth.program, truth.conversation)
    known = tally.latest.get(key)
    expected = tally.programs.get(truth.program)
    match truth.step_class:
        case StepClass.AUXILIARY:
            if expected is not None:
                score.auxiliary = _add(score.auxiliary, identity.program == expected)
            else:
                tally.programs[truth.program] = identity.program
            return
        case StepClass.COMPACTION:
            if expected is not None:
                score.compactions = _add(score.compactions, identity.program == expected)
            return
        case _:
            pass
    if known is not None:
        is_right = identity.program == known[0]
        score.steps = _add(score.steps, is_right)
        score.conversations = _add(score.conversations, identity.conversation == known[1])
        if not is_right:
            _note(tally, request, f"step not linked ({identity.evidence})")
        elif identity.conversation != known[1]:
            _note(tally, request, f"step in another conversation ({identity.lineage})")
    elif truth.step_class is StepClass.SUBAGENT and expected is not None:
        score.starts = _add(score.starts, identity.program == expected)
        if identity.program != expected:
            _note(tally, request, f"sub-agent not linked ({identity.evidence})")
    elif expected is not None and identity.program != expected:
        _note(tally, request, "first step not linked to its title call")
    tally.latest[key] = (identity.program, identity.conversation)
    tally.programs.setdefault(truth.program, identity.program)


def _add(pair: tuple[int, int], is_right: bool) -> tuple[int, int]:
    return pair[0] + is_right, pair[1] + 1


def _note(tally: _Tally, request: Recorded, text: str) -> None:
    tally.score.notes.append(f"{request.case} #{request.number}: {text}")
