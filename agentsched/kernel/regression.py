"""Recursive least squares: a linear law learnt sample by sample, old samples fading.

Each sample costs a few multiplications for each pair of features, whatever was learnt before. A
sample that lies far off what is usual is pulled in to the edge of the usual before it is learnt, so
that one stalled request does not bend the law; a change that stays is still followed, since what
is usual widens with it. Nothing is random and nothing is read from a clock: the same samples give
the same law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: How little is known at first: large, so that the first samples count in full.
_IGNORANCE: Final = 1e6
#: A residual beyond so many usual ones is an outlier.
_CLIP: Final = 4.0
_SMOOTHING: Final = 0.05
#: Samples before anything is taken for usual.
_USUAL_MIN: Final = 8


class Regression:
    """y = sum of coefficients x features. `forgetting` is what a sample counts one sample later."""

    __slots__ = ("_covariance", "_forgetting", "_usual", "coefficients", "error", "samples")

    def __init__(self, first: Sequence[float], *, forgetting: float = 0.997) -> None:
        assert 0.5 < forgetting <= 1.0
        n = len(first)
        self.coefficients = list(first)
        self._covariance = [[_IGNORANCE if i == j else 0.0 for j in range(n)] for i in range(n)]
        # One sample fades in one of all directions: so often each of them gets its turn.
        self._forgetting = forgetting**n
        self._usual = 0.0
        #: Mean size of what forecasts were off by, as a share of what came.
        self.error = 1.0
        self.samples = 0

    @property
    def confidence(self) -> float:
        """From 0, a guess, to 1: grows with samples, falls with how far off forecasts were."""
        seen = self.samples / (self.samples + 10.0)
        return max(0.0, 1.0 - self.error) * seen

    def predict(self, features: Sequence[float]) -> float:
        """What the law says for these features."""
        return sum(c * f for c, f in zip(self.coefficients, features, strict=True))

    def learn(self, features: Sequence[float], outcome: float) -> None:
        """Take in one sample."""
        residual = outcome - self.predict(features)
        size = abs(residual)
        if self.samples >= _USUAL_MIN:
            relative = min(1.0, size / max(abs(outcome), 1e-12))
            self.error += _SMOOTHING * (relative - self.error)
            limit = _CLIP * self._usual
            if size > limit > 0.0:
                residual = limit if residual > 0 else -limit
            # What is usual follows outliers slowly: a change that stays gets through in the end.
            self._usual += _SMOOTHING * (min(size, 2.0 * limit or size) - self._usual)
        else:
            self._usual = max(self._usual, size) if self.samples > 2 else 0.0
            self.error = 0.5
        self.samples += 1
        self._update(features, residual)

    def _update(self, features: Sequence[float], residual: float) -> None:
        n, covariance, keep = len(features), self._covariance, self._forgetting
        spread = [sum(row[j] * features[j] for j in range(n)) for row in covariance]
        known = sum(features[i] * spread[i] for i in range(n))
        if known <= 0.0:
            # Large features that hardly vary leave no digits to tell how well they are known.
            size = sum(feature * feature for feature in features) or 1.0
            for i in range(n):
                self.coefficients[i] += (1.0 - keep) * features[i] / size * residual
            return
        for i in range(n):
            self.coefficients[i] += spread[i] / (1.0 + known) * residual
        # What this sample tells of is known better, and what was told of it before fades. Nothing
        # else does: features that never vary would be forgotten without end, and the first sample
        # that does vary would then be learnt as a law of its own.
        told = (keep - (1.0 - keep) / known) / (keep * (1.0 + known))
        for i in range(n):
            for j in range(i, n):
                value = covariance[i][j] - told * spread[i] * spread[j]
                covariance[i][j] = covariance[j][i] = value
