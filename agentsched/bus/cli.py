"""`agentsched bus schema`: what is said on the bus, for those who write to it."""

from __future__ import annotations

import json

import typer

app = typer.Typer(help="The MQTT bus.", no_args_is_help=True)


@app.callback()
def bus() -> None:
    """The MQTT bus between tool runners and replicas (docs/bus.md)."""


@app.command()
def schema() -> None:
    """Print the JSON Schema of each kind of message."""
    from agentsched.bus.messages import schemas

    typer.echo(json.dumps(schemas(), indent=2))
