"""How many bytes of a prompt make a token, learnt for each model from what engines report.

A proxy does not tokenise: it estimates a prompt's tokens from its size, to know before the engine
does how much memory a step will need. Engines say afterwards how many there were.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from agentsched.proxy.identity import BYTES_PER_TOKEN

#: Weight of one observation; prompts of one agent are alike, so a few dozen are plenty.
_RATE: Final = 0.1
_RATIO_MIN: Final = 0.5
_RATIO_MAX: Final = 40.0
_MODELS_MAX: Final = 256
#: Chat templates add tokens that no message has; in small prompts they are most of it.
_TOKENS_MIN: Final = 64


class TokenRatios:
    """Bytes per token, by model."""

    def __init__(self) -> None:
        self._ratios: OrderedDict[str, float] = OrderedDict()

    def of(self, model: str) -> float:
        """The ratio to estimate with."""
        return self._ratios.get(model, BYTES_PER_TOKEN)

    def learn(self, model: str, *, used: float, estimated: int, actual: int) -> None:
        """With the ratio `used` a prompt was estimated; the engine counted `actual` tokens.

        Of prompts whose text is all that there is: what pictures and what engines know already come
        to, no size tells, and a model's ratio is everybody's.
        """
        if actual < _TOKENS_MIN or estimated < 1:
            return
        seen = min(_RATIO_MAX, max(_RATIO_MIN, used * estimated / actual))
        known = self._ratios.get(model)
        self._ratios[model] = seen if known is None else known + _RATE * (seen - known)
        if len(self._ratios) > _MODELS_MAX:
            self._ratios.popitem(last=False)
