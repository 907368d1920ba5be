"""Draws the Grafana dashboard: `python deploy/grafana/dashboard.py [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).with_name("agentsched.json")
_ALL: Final = 'job=~"$job",instance=~"$instance"'
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


#: Title, unit, and queries with their legends. `$` stands for the filter.
Panel = tuple[str, str, list[tuple[str, str]]]


def quantile(share: float, histogram: str, *, by: str = "") -> str:
    """A quantile of what a histogram saw lately, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    rate = f"rate({histogram}_bucket{{$}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def rates(counter: str, *, by: str) -> str:
    """How fast a counter grows, for each value of a label."""
    return f"sum by ({by}) (rate({counter}{{$}}[$__rate_interval]))"


def counted(title: str, counter: str, *, by: str) -> Panel:
    """A panel of how fast a counter grows, for each value of a label."""
    return title, "ops", [(rates(counter, by=by), f"{{{{{by}}}}}")]


def level(title: str, gauge: str, *, by: str, of: str, unit: str = "short") -> Panel:
    """A panel of a gauge for each value of a label: the `sum` or `max` `of` what replicas say."""
    return title, unit, [(f"{of} by ({by}) ({gauge}{{$}})", f"{{{{{by}}}}}")]


#: Rows of panels.
ROWS: Final[dict[str, list[Panel]]] = {
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
        counted("Steps per second, by outcome", "agentsched_steps_ended_total", by="outcome"),
        counted("Turned away", "agentsched_rejects_total", by="reason"),
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
        counted("Clients", "agentsched_requests_total", by="client"),
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
            # Ours: the conventions' end at 82 and 120 s, and a wait alone may take that.
            "Time to first token, as agents see it",
            "s",
            [
                (quantile(0.5, "agentsched_time_to_first_token_seconds"), "p50"),
                (quantile(0.99, "agentsched_time_to_first_token_seconds"), "p99"),
            ],
        ),
        (
            "Whole calls, as agents see them",
            "s",
            [
                (quantile(0.5, "agentsched_step_seconds"), "p50"),
                (quantile(0.99, "agentsched_step_seconds"), "p99"),
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
        level("Our steps there", "agentsched_engine_running_steps", by="engine", of="sum"),
        level(
            "KV in use, its own gauge",
            "agentsched_engine_kv_usage",
            by="engine",
            of="max",
            unit="percentunit",
        ),
        level(
            # Each replica counts what its own programs want, here and below.
            "Pressure: wanted over there is",
            "agentsched_pressure",
            by="of",
            of="sum",
            unit="percentunit",
        ),
        (
            "Working set against the pool",
            "short",
            [
                ("sum by (engine) (agentsched_engine_wanted_tokens{$})", "{{engine}} wanted"),
                ("max by (engine) (agentsched_engine_kv_tokens{$})", "{{engine}} pool"),
            ],
        ),
        level("Gate open (contended)", "agentsched_engine_contended", by="engine", of="max"),
    ],
    "Faults": [
        level("Ejected for failures", "agentsched_breaker_open", by="engine", of="max"),
        counted("Failed tries, by engine", "agentsched_breaker_failures_total", by="engine"),
        counted("Ejections, by outcome", "agentsched_breaker_ejections_total", by="outcome"),
        counted(
            "Retries that the budget was asked for",
            "agentsched_retry_budget_requests_total",
            by="outcome",
        ),
        counted(
            "Requests with a key of their own",
            "agentsched_idempotency_requests_total",
            by="outcome",
        ),
        counted("Turns that clients sent again", "agentsched_client_retries_total", by="outcome"),
    ],
    "Retention and warm-ups": [
        level("Retained tokens", "agentsched_engine_pinned_tokens", by="engine", of="sum"),
        ("Pins in force", "short", [("sum(agentsched_live_pins{$})", "pins")]),
        counted("Why pins end", "agentsched_unpins_total", by="reason"),
        counted("What engines say to hints", "agentsched_hints_total", by="outcome"),
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
        counted("Warm-ups asked for", "agentsched_prefetches_total", by="engine"),
    ],
    "Decisions": [
        counted("Places", "agentsched_dispatches_total", by="place"),
        counted("Orders", "agentsched_decisions_total", by="order"),
        counted("Retained for the step", "agentsched_decisions_total", by="pin"),
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
        level("Held steps", "agentsched_tenant_waiting_steps", by="tenant", of="sum"),
        level("Live programs", "agentsched_tenant_programs", by="tenant", of="sum"),
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
