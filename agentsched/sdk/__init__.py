"""`@agent_step` and its friends: they live inside users' agent processes, so they are light.

Standard library only; clients' libraries are imported when somebody asks for a client, frameworks
by the adapter that somebody imports.
"""

from __future__ import annotations

from typing import Final

#: Agent framework -> the module of its adapter.
ADAPTERS: Final = {
    "langgraph": "agentsched.sdk.integrations.langgraph",
    "openai-agents": "agentsched.sdk.integrations.openai_agents",
    "mini-swe-agent": "agentsched.sdk.integrations.mini_swe_agent",
}
