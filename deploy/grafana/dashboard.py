"""Draws the Grafana dashboard: `python deploy/grafana/dashboard.py [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).with_name("agentsched.json")
_ALL: Final = 'job=~"$job",instance=~"$instance"'
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def quantile(share: float, histogram: str, *, by: str = "") -> str:
    """A quantile of what a histogram saw lately, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    rate = f"rate({histogram}_bucket{{$}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def rates(counter: str, *, by: str) -> str:
    """How fast a counter grows, for each value of a label."""
    return f"sum by ({by}) (rate({counter}{{$}}[$__rate_interval]))"


#: Rows of panels: title, unit, and queries with their legends. `$` stands for the filter.
ROWS: Final[dict[str, list[tuple[str, str, list[tuple[str, str]]]]]] = {
    "At a glance": [
        ("Live programs", "short", [("sum(agentsched_programs{$})", "programs")]),
        (
            "Steps",
            "short",
            [
                ("sum(agentsched_waiting_steps{$})", "held"),
                ("sum(agentsched_running_steps{$})", "at engines"),
            ],
        ),
        (
            "Steps per second, by outcome",
            "ops",
            [
                (
                    rates("agentsched_steps_ended_total", by="outcome"),
                    "{{outcome}}",
                )
            ],
        ),
        (
            "Turned away",
            "ops",
            [
                (
                    rates("agentsched_rejects_total", by="reason"),
                    "{{reason}}",
                )
            ],
        ),
        (
            "Prompt tokens found in a cache",
            "percentunit",
            [
                (
                    'sum(rate(agentsched_tokens_total{$,kind="cached"}[$__rate_interval])) / '
                    'sum(rate(agentsched_tokens_total{$,kind="prompt"}[$__rate_interval]))',
                    "cached",
                )
            ],
        ),
        (
            "Clients",
            "ops",
            [
                (
                    rates("agentsched_requests_total", by="client"),
                    "{{client}}",
                )
            ],
        ),
    ],
    "Waits": [
        (
            "Wait before an engine",
            "s",
            [
                (quantile(0.5, "agentsched_wait_seconds"), "p50"),
                (quantile(0.99, "agentsched_wait_seconds"), "p99"),
                ("max(agentsched_wait_bound_seconds{$})", "bound"),
                ("max(agentsched_sensible_wait_seconds{$})", "least sensible bound"),
            ],
        ),
        (
            "Time to first token, as agents see it",
            "s",
            [
                (quantile(0.5, "gen_ai_server_time_to_first_token_seconds"), "p50"),
                (quantile(0.99, "gen_ai_server_time_to_first_token_seconds"), "p99"),
            ],
        ),
        (
            "Whole calls, as agents see them",
            "s",
            [
                (quantile(0.5, "gen_ai_server_request_duration_seconds"), "p50"),
                (quantile(0.99, "gen_ai_server_request_duration_seconds"), "p99"),
            ],
        ),
        (
            "Overtaken, p99",
            "short",
            [(quantile(0.99, "agentsched_bypassed_steps"), "later steps that went first")],
        ),
        (
            "Whole programs",
            "s",
            [(quantile(0.5, "gen_ai_invoke_agent_duration_seconds"), "p50")],
        ),
        (
            "Tools, p50",
            "s",
            [
                (
                    quantile(0.5, "gen_ai_execute_tool_duration_seconds", by="gen_ai_tool_name"),
                    "{{gen_ai_tool_name}}",
                )
            ],
        ),
    ],
    "Engines": [
        ("Up", "short", [("max by (engine) (agentsched_engine_up{$})", "{{engine}}")]),
        (
            "Our steps there",
            "short",
            [("sum by (engine) (agentsched_engine_running_steps{$})", "{{engine}}")],
        ),
        (
            "KV in use, its own gauge",
            "percentunit",
            [("max by (engine) (agentsched_engine_kv_usage{$})", "{{engine}}")],
        ),
        (
            "Pressure: wanted over there is",
            "percentunit",
            [("max by (of) (agentsched_pressure{$})", "{{of}}")],
        ),
        (
            "Working set against the pool",
            "short",
            [
                ("max by (engine) (agentsched_engine_wanted_tokens{$})", "{{engine}} wanted"),
                ("max by (engine) (agentsched_engine_kv_tokens{$})", "{{engine}} pool"),
            ],
        ),
        (
            "Gate open (contended)",
            "short",
            [("max by (engine) (agentsched_engine_contended{$})", "{{engine}}")],
        ),
    ],
    "Faults": [
        (
            "Ejected for failures",
            "short",
            [("max by (engine) (agentsched_breaker_open{$})", "{{engine}}")],
        ),
        (
            "Failed tries, by engine",
            "ops",
            [(rates("agentsched_breaker_failures_total", by="engine"), "{{engine}}")],
        ),
        (
            "Ejections, by outcome",
            "ops",
            [(rates("agentsched_breaker_ejections_total", by="outcome"), "{{outcome}}")],
        ),
        (
            "Retries that the budget was asked for",
            "ops",
            [(rates("agentsched_retry_budget_requests_total", by="outcome"), "{{outcome}}")],
        ),
        (
            "Requests with a key of their own",
            "ops",
            [(rates("agentsched_idempotency_requests_total", by="outcome"), "{{outcome}}")],
        ),
        (
            "Turns that clients sent again",
            "ops",
            [(rates("agentsched_client_retries_total", by="outcome"), "{{outcome}}")],
        ),
    ],
    "Retention and warm-ups": [
        (
            "Retained tokens",
            "short",
            [("sum by (engine) (agentsched_engine_pinned_tokens{$})", "{{engine}}")],
        ),
        ("Pins in force", "short", [("sum(agentsched_live_pins{$})", "pins")]),
        (
            "Why pins end",
            "ops",
            [
                (
                    rates("agentsched_unpins_total", by="reason"),
                    "{{reason}}",
                )
            ],
        ),
        (
            "What engines say to hints",
            "ops",
            [
                (
                    rates("agentsched_hints_total", by="outcome"),
                    "{{outcome}}",
                )
            ],
        ),
        (
            "Warmed tokens, by outcome",
            "short",
            [
                (
                    rates("agentsched_warm_tokens_total", by="outcome"),
                    "{{outcome}}",
                )
            ],
        ),
        (
            "Warm-ups asked for",
            "ops",
            [
                (
                    rates("agentsched_prefetches_total", by="engine"),
                    "{{engine}}",
                )
            ],
        ),
    ],
    "Decisions": [
        (
            "Places",
            "ops",
            [
                (
                    rates("agentsched_dispatches_total", by="place"),
                    "{{place}}",
                )
            ],
        ),
        (
            "Orders",
            "ops",
            [
                (
                    rates("agentsched_decisions_total", by="order"),
                    "{{order}}",
                )
            ],
        ),
        (
            "Retained for the step",
            "ops",
            [(rates("agentsched_decisions_total", by="pin"), "{{pin}}")],
        ),
    ],
    "Tenants": [
        (
            "Served tokens per second",
            "short",
            [
                (
                    "sum by (tenant) ("
                    "rate(agentsched_tenant_uncached_tokens_total{$}[$__rate_interval])"
                    " + rate(agentsched_tenant_output_tokens_total{$}[$__rate_interval]))",
                    "{{tenant}}",
                )
            ],
        ),
        (
            "Held steps",
            "short",
            [("sum by (tenant) (agentsched_tenant_waiting_steps{$})", "{{tenant}}")],
        ),
        (
            "Live programs",
            "short",
            [("sum by (tenant) (agentsched_tenant_programs{$})", "{{tenant}}")],
        ),
    ],
    "The proxy itself": [
        (
            "CPU",
            "percentunit",
            [("rate(process_cpu_seconds_total{$}[$__rate_interval])", "{{instance}}")],
        ),
        ("Memory", "bytes", [("process_resident_memory_bytes{$}", "{{instance}}")]),
        ("Event loop lag", "s", [("agentsched_loop_lag_seconds{$}", "{{instance}}")]),
        (
            "Store: backlog and spool",
            "short",
            [
                ("agentsched_store_backlog{$}", "{{instance}} backlog"),
                ("agentsched_store_spool_bytes{$}", "{{instance}} spool bytes"),
            ],
        ),
        (
            "Bus",
            "short",
            [
                ("agentsched_bus_up{$}", "{{instance}} up"),
                ("agentsched_bus_peers{$}", "{{instance}} peers"),
            ],
        ),
        (
            "Policy errors, late events",
            "ops",
            [
                ("rate(agentsched_policy_errors_total{$}[$__rate_interval])", "policy errors"),
                ("rate(agentsched_ignored_events_total{$}[$__rate_interval])", "late or duplicate"),
            ],
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, described in ROWS.items():
        panels.append(
            {"type": "row", "title": row, "id": len(panels) + 1, "collapsed": False, "panels": []}
            | {"gridPos": {"h": 1, "w": 24, "x": 0, "y": y}}
        )
        y += 1
        for i, (title, unit, queries) in enumerate(described):
            place = {"h": 8, "w": 8, "x": 8 * (i % 3), "y": y + 8 * (i // 3)}
            panels.append(_panel(len(panels) + 1, title, unit, queries) | {"gridPos": place})
        y += 8 * -(-len(described) // 3)
    return {
        "uid": "agentsched",
        "title": "agentsched",
        "tags": ["agentsched", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(number: int, title: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "lineWidth": 1}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": query.replace("{$", "{" + _ALL),
                "legendFormat": legend,
            }
            for i, (query, legend) in enumerate(queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    def of_label(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "includeAll": True,
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
        }

    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
        of_label("job", "label_values(agentsched_build_info, job)"),
        of_label("instance", 'label_values(agentsched_build_info{job=~"$job"}, instance)'),
    ]


def main() -> int:
    """Draw; with `--check` only say whether the file is not as it would be drawn."""
    new = json.dumps(dashboard(), indent=1) + "\n"
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == new:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{TARGET} is out of date: run python {Path(__file__).name}")
        return 1
    TARGET.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
