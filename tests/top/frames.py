"""Frames to show, made of few words."""

from __future__ import annotations

from typing import Any

import msgspec

from agentsched.dashboard.shapes import Frame

PROGRAM: dict[str, Any] = {
    "agent": "claude-code",
    "parent": None,
    "opened": 100.0,
    "last": 118.0,
    "tool": "",
    "held_for": "",
    "engine": "gpu-1",
    "live": 0,
    "conversations": 1,
    "pins": 0,
    "prompt_tokens": 9_000,
    "cached_tokens": 6_000,
    "output_tokens": 300,
}
ENGINE: dict[str, Any] = {
    "url": "http://gpu-1:8000",
    "is_up": True,
    "is_draining": False,
    "last_error": "",
    "running_steps": 3,
    "running_max": None,
    "waiting": 0,
    "kv_usage": 0.4,
    "kv_tokens": 48_000,
    "held_tokens": 24_000,
    "pinned_tokens": 12_000,
    "pins": 2,
    "wanted_tokens": 96_000,
    "is_contended": True,
    "preemptions": 0,
    "can_pin": True,
    "can_order": True,
    "has_prefix_cache": True,
    "prefill_us": 50.0,
    "decode_ms": 10.0,
    "samples": 9,
    "models": ["m"],
}


def program(name: str, state: str, **other: Any) -> dict[str, Any]:
    fixed = {"program": f"red/{name}", "tenant": "red", "state": state, "since": 119.0, "steps": 4}
    return PROGRAM | fixed | {"context_tokens": 5_000} | other


def tenant(name: str, **other: Any) -> dict[str, Any]:
    names = "charged_tokens served_tokens prompt_tokens uncached_tokens output_tokens"
    names += " idle_kv_tokens steps programs waiting_steps running_steps"
    counts = dict.fromkeys(names.split(), 1)
    return {"tenant": name, "weight": 1.0, "entitled": 0.5} | counts | other


def sample(at: float, **charged: float) -> dict[str, Any]:
    return {
        "at": at,
        "waiting_steps": 0,
        "running_steps": 0,
        "pins": 0,
        "wait_p95_s": None,
        "engines": [],
        "tenants": [[name, value, 0.5] for name, value in charged.items()],
    }


def made(*programs: dict[str, Any], **other: Any) -> Frame:
    overview = {
        "version": "0.1.0",
        "profile": "agentsched",
        "policies": {},
        "is_draining": False,
        "waiting_steps": 1,
        "running_steps": 2,
        "pins": 3,
        "oldest_wait_s": 4.5,
        "wait_p50_s": 0.01,
        "wait_p95_s": 1.5,
        "wait_max_s": 2.0,
        "max_wait_s": 120.0,
        "sensible_wait_s": None,
        "is_bound_too_tight": False,
        "steps_total": 10,
        "rejected_total": 0,
        "retried_total": 0,
        "yielded_total": 0,
        "policy_errors_total": 0,
        "prompt_tokens_total": 1_000,
        "cached_tokens_total": 750,
    }
    raw = {
        "now": 120.0,
        "is_full": True,
        "overview": overview,
        "engines": [ENGINE | {"engine": "gpu-1"}],
        "tenants": [tenant("red"), tenant("blue")],
        "programs": list(programs),
        "gone": [],
        "programs_total": len(programs),
        "decisions": [],
        "decisions_left_out": 0,
        "history": [sample(60, red=0, blue=100), sample(120, red=300, blue=200)],
    }
    return msgspec.convert(raw | other, Frame)


SIX = [
    program("a", "paused", tool="bash"),
    program("b", "waiting", held_for="memory", since=110.0),
    program("c", "running", steps=9),
    program("d", "pinned", context_tokens=90_000),
    program("e" * 80, "idle"),
    program("f", "waiting", held_for="cold start", since=90.0),
]
