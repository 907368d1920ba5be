"""Opaque identifiers. Hosts mint them; the core only compares and carries them."""

from __future__ import annotations

from typing import NewType

#: One agent run, as a person or a script started it, with its sub-agents.
ProgramId = NewType("ProgramId", str)
#: One KV lineage inside a program: its main thread, a sub-agent, a branch.
ConversationId = NewType("ConversationId", str)
#: One LLM call.
StepId = NewType("StepId", str)
#: Who pays: API key, header or configuration. Never a program.
TenantId = NewType("TenantId", str)
#: One serving engine.
EngineId = NewType("EngineId", str)
#: The hash of a prompt's first messages.
PrefixId = NewType("PrefixId", str)
#: One grant of retention, or one warm-up request.
PinId = NewType("PinId", str)
#: One tool call, as the engine named it in its answer.
CallId = NewType("CallId", str)
#: A tool's name, with the first command word where there is one (`Bash git`).
ToolName = NewType("ToolName", str)
