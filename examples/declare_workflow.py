"""Tell the proxy what an agent does next, before it does it: from decorators to forecasts.

The declaration is made of the decorated steps. It is sent once, by whoever may operate the proxy;
from then on a program whose `agent` has this name is forecast by it while it keeps to it.

    AGENTSCHED_URL=http://127.0.0.1:8900 python examples/declare_workflow.py
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import agentsched


@agentsched.agent_step(tools=["grep", "read"], expects={"grep": 0.5}, next=["explore", "edit"])
def explore() -> None:
    """Ask the model where the defect is."""


@agentsched.agent_step(tools=["edit"], expects={"edit": 0.1}, next=["test"])
def edit() -> None:
    """Ask it for a change."""


@agentsched.agent_step(tools=["pytest"], expects={"pytest": 30.0}, next=["edit", "conclude"])
def test() -> None:
    """Ask it what to run."""


@agentsched.agent_step
def conclude() -> None:
    """Ask it for a summary; it calls no tool."""


WORKFLOW = agentsched.declared_workflow("fix-bug", explore, edit, test, conclude)


def declare(workflow: dict[str, Any]) -> dict[str, Any]:
    root = os.environ["AGENTSCHED_URL"].rstrip("/").removesuffix("/v1")
    url = root + "/agentsched/v1/workflows"
    headers = {"content-type": "application/json"}
    key = os.environ.get("AGENTSCHED_ADMIN_KEY")
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(workflow).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        declared: dict[str, Any] = json.load(answer)
    return declared


if __name__ == "__main__":
    for name, step in declare(WORKFLOW)["steps"].items():
        print(f"{name}: {step['steps_left']:.1f} steps to come")
