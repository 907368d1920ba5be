"""What work costs on an engine, learnt from ordinary traffic: nobody calibrates by hand.

Prefill: the time from dispatch to the first token, per token that was not cached. Queues inside the
engine only ever lengthen it, so a low quantile is followed rather than a mean: it is the price on
an engine that is not busy with others. Decode: the time per further token, its median. Reload: what
it costs to have a conversation back, as a share of computing it: its time to the first token beyond
what the law tells for its new tokens alone, over what computing the given-up ones would add, and
not less than the part that was computed again. It counts where the engine has a tier below its
cache alone. Elsewhere a reload that cost little says that nothing had been dropped yet; who takes
that for a price lets everybody in, and from then on all is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Final

from agentsched.kernel.regression import Regression
from agentsched.model import SECOND, Nanos

#: Steps that compute less than this say more about the engine's overhead than about its price.
_UNCACHED_MIN: Final = 128
_OUTPUT_MIN: Final = 8
#: Until so many conversations came back over a tier, they are taken to cost this share of
#: computing: who is held before anything is known of it does not come back, and teaches nothing.
_RELOADS_MIN: Final = 8
_SHARE_FIRST: Final = 0.25
#: Between what a sample of the share of computing is cut to: the rest is noise of a busy engine.
_SHARE_MIN: Final = 0.01
_SHARE_MAX: Final = 2.0
#: First steps are large, to get from the first guess to the right order of magnitude.
_RATE_FIRST: Final = 0.5
#: The law is believed from this confidence on, until it falls under the second one: in between
#: nothing changes, so that decisions do not flap with single samples.
_BELIEVED_FROM: Final = 0.7
_BELIEVED_UNTIL: Final = 0.5
#: And never further than by this factor from the price per token: it may have seen short prompts
#: alone, and be asked about a long one.
_LAW_FACTOR_MAX: Final = 4.0
_RATE_LAST: Final = 0.02


@dataclass(slots=True)
class _Quantile:
    """Follows a quantile of a positive quantity, in logarithms: off by at most a few percent."""

    level: float
    value: float
    samples: int = 0

    def add(self, sample: float) -> None:
        rate = max(_RATE_LAST, _RATE_FIRST / (1 + self.samples / 4))
        if not self.samples:
            self.value = sample
        elif sample < self.value:
            self.value = max(sample, exp(log(self.value) - rate * (1 - self.level)))
        else:
            self.value = min(sample, exp(log(self.value) + rate * self.level))
        self.samples += 1


class CostLaw:
    """How an engine's times come about, as laws with a confidence; nobody types them in.

        seconds to the first token = a + b u + c u m + q w
        seconds per output token   = d + e n + f n k

    u: thousands of uncached tokens, m: thousands of tokens before them on average, w: thousands of
    tokens that the engine was computing for others (its queue), n: steps that ran together, k:
    thousands of tokens of this one's context. Learnt by recursive least squares with forgetting.
    """

    def __init__(self) -> None:
        self._first = Regression((0.02, 0.1, 0.0, 0.1))
        self._token = Regression((0.02, 0.0, 0.0))

    def first_token_s(
        self, *, uncached_tokens: int, prompt_tokens: int, ahead_tokens: int = 0
    ) -> float:
        """Seconds from dispatch to the first token."""
        features = _prefill(uncached_tokens, prompt_tokens, ahead_tokens)
        return max(0.0, self._first.predict(features))

    def token_s(self, *, running_steps: int = 1, context_tokens: int = 0) -> float:
        """Seconds for one more output token."""
        return max(0.0, self._token.predict(_decode(running_steps, context_tokens)))

    @property
    def prefill_confidence(self) -> float:
        """From 0, a guess, to 1."""
        return self._first.confidence

    @property
    def decode_confidence(self) -> float:
        """From 0, a guess, to 1."""
        return self._token.confidence

    @property
    def samples(self) -> int:
        """Steps that taught it."""
        return self._first.samples

    def coefficients(self) -> dict[str, float]:
        """All of them, in seconds per thousand tokens and the like, by name."""
        names = ("a", "b", "c", "q", "d", "e", "f")
        values = (*self._first.coefficients, *self._token.coefficients)
        return dict(zip(names, values, strict=True))

    def learn(
        self,
        *,
        uncached_tokens: int,
        prompt_tokens: int,
        ahead_tokens: int,
        output_tokens: int,
        running_steps: int,
        to_first_token: Nanos,
        to_last_token: Nanos,
    ) -> None:
        """A streamed step ended; arguments as in `EngineCost.learn`."""
        if to_first_token > 0 and uncached_tokens >= 0:
            features = _prefill(uncached_tokens, prompt_tokens, ahead_tokens)
            self._first.learn(features, to_first_token / SECOND)
        if output_tokens >= _OUTPUT_MIN and to_last_token > 0:
            token_s = to_last_token / SECOND / (output_tokens - 1)
            context = prompt_tokens + output_tokens // 2
            self._token.learn(_decode(running_steps, context), token_s)


def _prefill(uncached: int, prompt: int, ahead: int) -> tuple[float, ...]:
    thousands = uncached / 1_000
    return (1.0, thousands, thousands * (prompt / 1_000 - thousands / 2), ahead / 1_000)


def _decode(running: int, context: int) -> tuple[float, ...]:
    return (1.0, float(running), running * context / 1_000)


class EngineCost:
    """Prices of one engine, in nanoseconds per token."""

    def __init__(self) -> None:
        # First guesses, used until the first sample: an 8B model on a small GPU.
        self._prefill = _Quantile(level=0.25, value=100_000.0)
        self._reload = _Quantile(level=0.5, value=1.0)
        self._decode = _Quantile(level=0.5, value=20_000_000.0)
        self.law = CostLaw()
        #: Whether what the cache drops is had back from below it: else it is computed again.
        self.has_tier = False
        #: Whether decisions rest on the law; else on the prices per token.
        self.believes_law = False

    @property
    def samples(self) -> int:
        """How many steps taught the prefill price; 0 means that it is a guess."""
        return self._prefill.samples

    @property
    def prefill_ns_per_token(self) -> float:
        """Price of one prompt token that is not cached."""
        return self._prefill.value

    @property
    def decode_ns_per_token(self) -> float:
        """Price of one output token."""
        return self._decode.value

    @property
    def reload_ns_per_token(self) -> float:
        """Price of a token of a conversation that comes back: of its cheapest source."""
        if not self.has_tier:
            return self._prefill.value
        is_known = self._reload.samples >= _RELOADS_MIN
        share = min(1.0, self._reload.value) if is_known else _SHARE_FIRST
        return share * self._prefill.value

    def reload(self, tokens: int) -> Nanos:
        """What it takes to bring so many tokens of a conversation back, where nobody is in the way.

        By the law, less what a request takes that finds all of it cached; by the price per token
        while the law is not believed.
        """
        by_token = tokens * self.reload_ns_per_token
        if not self.believes_law:
            return Nanos(round(by_token))
        law = self.law
        computed = law.first_token_s(uncached_tokens=tokens, prompt_tokens=tokens)
        computed -= law.first_token_s(uncached_tokens=0, prompt_tokens=tokens)
        # Where a tier below brings tokens back for less than computing them, that share of it.
        span = computed * SECOND * self.reload_ns_per_token / self.prefill_ns_per_token
        least, most = by_token / _LAW_FACTOR_MAX, by_token * _LAW_FACTOR_MAX
        return Nanos(round(min(most, max(least, span))))

    def prefill(self, tokens: int) -> Nanos:
        """How long it takes to compute so many prompt tokens."""
        return Nanos(round(tokens * self._prefill.value))

    def patience(self, tokens: int) -> Nanos:
        """How long a prefill is taken to be under way when no first token tells its end."""
        return Nanos(2 * self.prefill(tokens))

    def learn(
        self,
        *,
        uncached_tokens: int,
        given_up_tokens: int = 0,
        fresh_tokens: int = 0,
        output_tokens: int,
        to_first_token: Nanos,
        to_last_token: Nanos,
        prompt_tokens: int = 0,
        ahead_tokens: int = 0,
        running_steps: int = 1,
    ) -> None:
        """A streamed step ended. Spans run from dispatch, and from the first to the last token.

        `given_up_tokens` are those of a conversation that had been let go, `fresh_tokens` those of
        its prompt that nobody had computed before, `ahead_tokens` those that the engine was
        computing for others when this step was sent, `running_steps` the steps that ran there with
        it.
        """
        if given_up_tokens < _UNCACHED_MIN:
            # Where what was given up comes from a tier, its time is not that of computing.
            self.law.learn(
                uncached_tokens=uncached_tokens,
                prompt_tokens=max(prompt_tokens, uncached_tokens),
                ahead_tokens=ahead_tokens,
                output_tokens=output_tokens,
                running_steps=running_steps,
                to_first_token=to_first_token,
                to_last_token=to_last_token,
            )
        least = _BELIEVED_UNTIL if self.believes_law else _BELIEVED_FROM
        self.believes_law = self.law.prefill_confidence >= least
        if uncached_tokens >= _UNCACHED_MIN and to_first_token > 0:
            self._prefill.add(to_first_token / uncached_tokens)
        if given_up_tokens >= _UNCACHED_MIN and to_first_token > 0:
            without = self.law.first_token_s(
                uncached_tokens=fresh_tokens,
                prompt_tokens=max(prompt_tokens, fresh_tokens),
                ahead_tokens=ahead_tokens,
            )
            computed = self.law.first_token_s(
                uncached_tokens=fresh_tokens + given_up_tokens,
                prompt_tokens=max(prompt_tokens, fresh_tokens + given_up_tokens),
                ahead_tokens=ahead_tokens,
            )
            if computed > without:
                share = (to_first_token / SECOND - without) / (computed - without)
                again = min(1.0, (uncached_tokens - fresh_tokens) / given_up_tokens)
                self._reload.add(min(_SHARE_MAX, max(_SHARE_MIN, share, again)))
        if output_tokens >= _OUTPUT_MIN and to_last_token > 0:
            self._decode.add(to_last_token / (output_tokens - 1))
