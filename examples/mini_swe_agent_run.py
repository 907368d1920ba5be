"""mini-swe-agent: an instance is a program, its commands are reported.

pip install 'agentsched[sdk]' mini-swe-agent  # in a checkout: '.[sdk]'
AGENTSCHED_URL=http://127.0.0.1:8900 python examples/mini_swe_agent_run.py django-11099 "Fix it"
"""

from __future__ import annotations

import os
import sys

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

from agentsched.sdk.integrations import mini_swe_agent

MODEL = os.environ.get("MODEL", "sim")


def fix(instance: str, task: str) -> str:
    model = LitellmModel(
        model_name=f"openai/{MODEL}",
        model_kwargs=mini_swe_agent.connection() | {"max_tokens": 256},
        cost_tracking="ignore_errors",
    )
    agent = DefaultAgent(
        model,
        LocalEnvironment(),
        system_template="You are a programmer. Use the tool bash.",
        instance_template="{{task}}",
        step_limit=10,
    )
    mini_swe_agent.attach(agent, program=instance)
    return str(agent.run(task)["submission"])


if __name__ == "__main__":
    print(fix(*sys.argv[1:]).strip())
