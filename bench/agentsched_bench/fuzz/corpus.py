"""Good inputs in small, from which twisted ones are made: one of each kind, and no more."""

from __future__ import annotations

from typing import Any, Final

TOPICS: Final = (
    "agentsched/c/tools/p/call_1/finished",
    "agentsched/c/engines/e0/r1",
    "agentsched/c/tenants/t%2Fx/r1",
    "agentsched/c/replicas/r1",
    "agentsched/c/turns/r1/0",
)
MESSAGES: Final[tuple[dict[str, Any], ...]] = (
    {"tool": "bash", "expected_s": 2.5, "took_s": 1.5, "is_error": False},
    {"running_steps": 3, "resident_tokens": 12_000},
    {"epoch": "x", "uncached_tokens": 7, "output_tokens": 5, "waits": True, "age_s": 1.0},
    {"state": "up", "epoch": "x", "url": "http://h:1"},
)
JOURNAL: Final = (
    '{"seq":0,"now":1,"event":["StepArrived",{"step":"s","program":"p","conversation":"p#0",'
    '"tenant":"t","prompt_tokens":10}],"commands":[]}',
    '{"seq":1,"now":2,"event":["TimerFired",{}],"commands":[]}',
)

_CALL: Final = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
_TASK: Final = [
    {"role": "system", "content": "be good"},
    {"role": "user", "content": "fix it please"},
]
_SAID: Final = {"role": "assistant", "content": "look", "tool_calls": [_CALL]}
_FOUND: Final = {"role": "tool", "content": "line\n" * 5, "tool_call_ids": ["c1"]}
#: Documents of a session, by the importer that reads them.
SESSIONS: Final[dict[str, tuple[Any, ...]]] = {
    "swe-agent": (
        {
            "trajectory": [
                {
                    "query": _TASK,
                    "response": "look",
                    "action": "ls",
                    "observation": "line\n" * 5,
                    "execution_time": 0.5,
                    "state": {"working_dir": "/"},
                },
                {
                    "query": [*_TASK, _SAID, _FOUND],
                    "response": "done",
                    "action": "submit",
                    "observation": "",
                    "execution_time": 0.1,
                },
            ],
            "history": [*_TASK, _SAID, _FOUND],
            "info": {"model_stats": {"tokens_sent": 200, "tokens_received": 20}},
        },
    ),
    "mini-swe-agent": (
        {
            "info": {"mini_version": "1.9", "config": {"model": {"model_name": "m"}}},
            "messages": [
                *_TASK,
                {
                    "role": "assistant",
                    "content": "```bash\nls\n```",
                    "extra": {"response": {"usage": {"prompt_tokens": 90}}},
                },
                {"role": "user", "content": "<returncode>0</returncode>"},
                {"role": "assistant", "content": "done"},
            ],
            "trajectory_format": "mini-swe-agent-1",
        },
    ),
    "claude-code": (
        {
            "type": "user",
            "sessionId": "s",
            "uuid": "u1",
            "timestamp": "2026-01-01T00:00:00.000Z",
            "message": {"role": "user", "content": "fix it"},
        },
        {
            "type": "assistant",
            "sessionId": "s",
            "uuid": "u2",
            "parentUuid": "u1",
            "timestamp": "2026-01-01T00:00:02.000Z",
            "requestId": "r1",
            "message": {
                "id": "m1",
                "role": "assistant",
                "model": "m",
                "content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}],
                "usage": {
                    "input_tokens": 5,
                    "cache_read_input_tokens": 100,
                    "cache_creation_input_tokens": 9,
                    "output_tokens": 20,
                },
            },
        },
        {
            "type": "user",
            "sessionId": "s",
            "uuid": "u3",
            "parentUuid": "u2",
            "timestamp": "2026-01-01T00:00:03.500Z",
            "message": {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}],
            },
        },
    ),
    "mooncake": (
        {
            "timestamp": 0,
            "input_length": 1_500,
            "output_length": 20,
            "hash_ids": [1, 2, 3],
            "session_id": "s",
        },
        {
            "timestamp": 2_000,
            "input_length": 1_900,
            "output_length": 30,
            "hash_ids": [1, 2, 3, 4],
            "session_id": "s",
        },
    ),
    "otel": (
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": []},
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": "01",
                                    "spanId": "02",
                                    "name": "chat m",
                                    "startTimeUnixNano": "1700000000000000000",
                                    "endTimeUnixNano": "1700000001000000000",
                                    "attributes": [
                                        {
                                            "key": "gen_ai.operation.name",
                                            "value": {"stringValue": "chat"},
                                        },
                                        {
                                            "key": "gen_ai.usage.input_tokens",
                                            "value": {"intValue": "100"},
                                        },
                                        {
                                            "key": "gen_ai.usage.output_tokens",
                                            "value": {"intValue": "9"},
                                        },
                                    ],
                                }
                            ]
                        }
                    ],
                }
            ]
        },
    ),
}
