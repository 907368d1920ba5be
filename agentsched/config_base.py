"""What all parts of the configuration are made of: spans, secrets, and tables without surprises."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
)

from agentsched.model import MILLISECOND, ConfigError, Nanos, in_seconds, parse_span, seconds

#: Shorter spans are a number whose unit was forgotten.
_SPAN_MIN: Final = MILLISECOND
#: A century and a half; sums of longer ones leave what databases and other replicas can read.
_SPAN_MAX: Final = Nanos(2**62)


def _read_span(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_span(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    if isinstance(value, float):
        if not abs(value) <= in_seconds(_SPAN_MAX):
            raise ValueError("too long for a length of time")
        return seconds(value)
    return value


def _long_enough(span: Nanos) -> Nanos:
    if span < _SPAN_MIN:
        raise ValueError("too short for a length of time (write 250ms, 15s, 2m or 1h)")
    if span > _SPAN_MAX:
        raise ValueError("too long for a length of time")
    return span


#: Of what there must be one at least.
Count = Annotated[int, Field(ge=1)]

#: A length of time: `15s` or `250ms` in files, seconds where it is a number with a point.
Span = Annotated[
    Nanos,
    BeforeValidator(_read_span),
    AfterValidator(_long_enough),
    PlainSerializer(lambda span: f"{in_seconds(span):g}s", return_type=str),
    WithJsonSchema({"type": "string"}),
]


def _given(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().strip():
        raise ValueError("it is empty, which is no secret: fill it in, or leave it out")
    return secret


def _sendable(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("a key has no line breaks, and no signs that a header cannot have")
    return key


def _stripped(key: SecretStr) -> SecretStr:
    return SecretStr(key.get_secret_value().strip())


#: A secret that must be one: a variable that nobody filled in would do the opposite of a key.
Secret = Annotated[SecretStr, AfterValidator(_given)]
#: One that goes over the wire in a header.
Key = Annotated[Secret, AfterValidator(_sendable)]
#: One that headers are compared with. What comes out of a file ends in a line break, theirs do not.
OurKey = Annotated[Secret, AfterValidator(_stripped), AfterValidator(_sendable)]

#: What a header of somebody else's wants beside our requests.
HeaderValue = Annotated[SecretStr, AfterValidator(_stripped), AfterValidator(_sendable)]
#: A header's name as HTTP has it; an empty one is no request's.
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]*$")]


def _reachable(address: str) -> str:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not (address.startswith("tcp://") and re.fullmatch(r"[0-9]{1,5}", port)):
        raise ValueError("write tcp://HOST:PORT")
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host):
        raise ValueError("write the host of tcp://HOST:PORT; the engine binds to `*`, we go to it")
    if not 0 < int(port) < 65_536:
        raise ValueError("a port is a number from 1 to 65535")
    return address


#: Where somebody publishes over ZeroMQ.
TcpAddress = Annotated[str, AfterValidator(_reachable)]


class Part(BaseModel):
    """A table of the configuration. Unknown keys are refused, values never change."""

    # What was given is never repeated in an error: it may be a secret in the wrong place.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
