"""How well somebody else told programs apart: precision and recall of labels against the truth.

Both are B-cubed figures: for each call, precision is the share of the calls with its label that
truly belong to its program, recall the share of its program's calls that have its label; then the
mean over calls. A call without a label stands alone. Merging two programs costs precision,
splitting one costs recall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributed:
    """One call: the program it truly belongs to and the label that it got (None: none)."""

    truth: str
    label: str | None
    is_main: bool = True


class Attribution(msgspec.Struct, frozen=True, kw_only=True):
    """The figures. All shares are 1.0 when there is nothing to judge.

    `right_share` is the share of calls that carry their program's own label: the one that most of
    the program's calls have and that is most often given to this program. `main_*` leave sub-agents
    out, whose first prompts have nothing in common with their parent's. `merged` is the number of
    labels that more than one program got, `split` that of programs with more than one label.
    """

    calls: int
    programs: int
    labels: int
    unlabelled: int
    precision: float
    recall: float
    right_share: float
    main_precision: float
    main_recall: float
    main_right_share: float
    merged: int
    split: int


def attribution(calls: Iterable[Attributed]) -> Attribution:
    """Judge the labels of `calls`."""
    rows = list(calls)
    everything = _Counts(rows)
    mains = _Counts([row for row in rows if row.is_main])
    return Attribution(
        calls=len(rows),
        programs=len(everything.truths),
        labels=len({row.label for row in rows if row.label is not None}),
        unlabelled=sum(row.label is None for row in rows),
        precision=everything.precision(),
        recall=everything.recall(),
        right_share=everything.right_share(),
        main_precision=mains.precision(),
        main_recall=mains.recall(),
        main_right_share=mains.right_share(),
        merged=everything.merged(),
        split=everything.split(),
    )


class _Counts:
    """How often each program got each label."""

    def __init__(self, rows: list[Attributed]) -> None:
        self.calls = len(rows)
        #: (program, label) to calls; a missing label counts as one of its own.
        self.pairs: Counter[tuple[str, str]] = Counter()
        for index, row in enumerate(rows):
            label = f"label {row.label}" if row.label is not None else f"none {index}"
            self.pairs[row.truth, label] += 1
        self.truths: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        for (truth, label), count in self.pairs.items():
            self.truths[truth] += count
            self.labels[label] += count

    def precision(self) -> float:
        total = sum(n * n / self.labels[label] for (_, label), n in self.pairs.items())
        return total / self.calls if self.calls else 1.0

    def recall(self) -> float:
        total = sum(n * n / self.truths[truth] for (truth, _), n in self.pairs.items())
        return total / self.calls if self.calls else 1.0

    def right_share(self) -> float:
        if not self.calls:
            return 1.0
        main_label: dict[str, tuple[int, str]] = {}
        main_truth: dict[str, tuple[int, str]] = {}
        for (truth, label), count in self.pairs.items():
            main_label[truth] = max(main_label.get(truth, (0, "")), (count, label))
            main_truth[label] = max(main_truth.get(label, (0, "")), (count, truth))
        right = sum(
            count
            for (truth, label), count in self.pairs.items()
            if main_label[truth][1] == label
            and main_truth[label][1] == truth
            # One call without a label is not right merely because it is alone.
            and not label.startswith("none ")
        )
        return right / self.calls

    def merged(self) -> int:
        programs = Counter(label for _, label in self.pairs)
        return sum(count > 1 for count in programs.values())

    def split(self) -> int:
        labels = Counter(truth for truth, _ in self.pairs)
        return sum(count > 1 for count in labels.values())
