"""Which engines have a step's model, where those of a fleet serve different ones."""

from __future__ import annotations

from agentsched.model import Capabilities


def serves(engine: Capabilities, model: str) -> bool:
    """Whether it has this model; an engine that lists none is taken to have it."""
    return not model or not engine.models or model in engine.models


def share_one(one: Capabilities, other: Capabilities) -> bool:
    """Whether there may be steps that either of them could be given."""
    return not one.models or not other.models or any(model in other.models for model in one.models)
