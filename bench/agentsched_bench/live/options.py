"""The options of `agentsched replay`, named once for every command that has them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentsched_bench.live.identity import STYLES
from agentsched_bench.workload.trace import TRACE_HELP


class Spoken(StrEnum):
    """The dialects that can be replayed."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


class Echo(StrEnum):
    """How much of an answer the prompts after it hold."""

    RECORDED = "recorded"
    WHOLE = "whole"


Trace = Annotated[Path, typer.Argument(help=TRACE_HELP)]
Urls = Annotated[
    list[str],
    typer.Option("--url", "--arm", metavar="[NAME=]URL", help="An arm: an endpoint. Repeatable."),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(metavar="[ARM=]STYLE", help=f"How programs name themselves: {', '.join(STYLES)}."),
]
Resets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[ARM=]URL",
        help="POST here before each run to empty the cache; with one for each arm, runs share "
        "their content.",
    ),
]
Programs = Annotated[
    int | None, typer.Option(min=1, help="How many, by lot with the seed; default all.")
]
Only = Annotated[
    list[str] | None, typer.Option(help="FIELD=PATTERN, as in model=*haiku*. Repeatable.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="At most this many calls per conversation.")]
ScaleTokens = Annotated[float, typer.Option(help="Divide token counts by this.")]
ScaleTime = Annotated[float, typer.Option(help="Divide pauses by this.")]
GapCap = Annotated[float, typer.Option(help="Cut pauses to this many seconds first.")]
MaxContext = Annotated[
    int | None, typer.Option(min=1, help="End a conversation before its context exceeds this.")
]
ArrivalsText = Annotated[
    str, typer.Option(help="recorded, poisson:RATE, burst:RATE/s or closed:NUMBER.")
]
Dialects = Annotated[Spoken, typer.Option(help="API to speak; completions sends token ids.")]
Echoes = Annotated[
    Echo,
    typer.Option(
        help="Of each answer, later prompts hold as much as was recorded (less where some of it "
        "was reasoning), or all."
    ),
]
Model = Annotated[str | None, typer.Option(help="Default: what the first arm serves.")]
Seed = Annotated[int, typer.Option(help="Chooses programs and arrivals.")]
Repeat = Annotated[int, typer.Option(min=1, help="Runs of each arm.")]
Alternate = Annotated[bool, typer.Option("--alternate/--in-turn", help="A B A B, or A A B B.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for one attempt.")]
Attempts = Annotated[int, typer.Option(min=1, help="Tries of a call on 429 and 503.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.")
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Keep the results in this JSON file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
