"""Draws the parts of the documentation that repeat the code: `python docs/draw.py [--check]`.

Each stands between `<!-- drawn: NAME -->` and `<!-- end -->` in one of the pages.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agentsched import config, config_access, config_limits, config_telemetry, config_trust
from agentsched.model import Limits

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "docs" / "architecture.md", ROOT / "docs" / "configuration.md")
PACKAGES: Final = (
    "agentsched",
    "graphs/agentsched_graphs",
    "policies/agentsched_policies",
    "adapters/agentsched_adapters",
    "bench/agentsched_bench",
)
_PART: Final = re.compile(
    r"(?P<head><!-- drawn: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL
)


def modules() -> str:
    """One line for each module: its path, and the first sentence of its docstring."""
    lines = []
    for package in PACKAGES:
        lines += ["", f"**`{package}/`**", ""]
        for path in sorted((ROOT / package).rglob("*.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if said:
                name = path.relative_to(ROOT / package).as_posix()
                lines.append(f"- `{name}`: {first_sentence(said)}")
    return "\n".join(lines[1:]) + "\n"


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


#: The tables of the file, in the order in which they are shown.
_TABLES: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("", config.Config),
    ("[[engines]]", config.EngineConfig),
    ("[limits]", config_limits.LimitsConfig),
    ("[http]", config.HttpConfig),
    ("[upstream]", config.UpstreamConfig),
    ("[identity]", config.IdentityConfig),
    ("[store]", config.StoreConfig),
    ("[bus]", config.BusConfig),
    ("[auth]", config_access.AuthConfig),
    ("[[auth.keys]]", config_access.KeyConfig),
    ("[auth.oidc]", config_access.OidcConfig),
    ("[tls]", config_access.TlsConfig),
    ("[breaker]", config_trust.BreakerConfig),
    ("[retries]", config_trust.RetriesConfig),
    ("[idempotency]", config_trust.IdempotencyConfig),
    ("[telemetry]", config_telemetry.TelemetryConfig),
    ("[policies.POINT]", config.PolicyChoice),
    ("[tenants.NAME]", config_limits.TenantConfig),
)
_UNITS: Final = (("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000))


def options() -> str:
    """One table for each table of the configuration file."""
    lines: list[str] = []
    for title, part in _TABLES:
        lines += [f"### `{title}`" if title else "### Top level", ""]
        lines += [" ".join((part.__doc__ or "").split()), "", "| key | default | meaning |"]
        lines += ["|---|---|---|"]
        for name, field in part.model_fields.items():
            if name not in ("policies", "tenants") and not _is_table(field):
                meaning = (field.description or "").replace("|", "\\|")
                default = _default(part, name, field)
                lines.append(f"| `{name}` | {default} | {meaning}{_choices(field)} |")
        lines.append("")
    return "\n".join(lines)


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(part: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    limit = config_limits.LIMIT_NAMES.get(name, name)
    # A tenant's ceiling of the same name is none where it is left out.
    if value is None and part is config_limits.LimitsConfig and limit in Limits.__slots__:
        value = getattr(Limits(), limit)
        return f"`{_span(value)}`" if limit.endswith(("_ns", "_ns_max")) else f"`{value}`"
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{_span(value)}`" if "Nanos" in str(field.annotation) else f"`{value}`"


def _span(value: int) -> str:
    for unit, size in _UNITS:
        if value % size == 0:
            return f"{value // size}{unit}"
    return f"{value // 1_000_000}ms"


def _choices(field: FieldInfo) -> str:
    words: Any = getattr(field.annotation, "__args__", ())
    if not words or not all(isinstance(word, str) for word in words):
        return ""
    return f" ({', '.join(f'`{word}`' for word in words)})"


DRAWINGS: Final[dict[str, Callable[[], str]]] = {"modules": modules, "options": options}


def draw(page: str) -> str:
    """The page with every drawn part made anew."""

    def drawn(part: re.Match[str]) -> str:
        return f"{part['head']}{DRAWINGS[part['name']]()}{part['tail']}"

    return _PART.sub(drawn, page)


def main() -> int:
    """Draw; with `--check` only say which pages are not as they would be drawn."""
    stale = 0
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        new = draw(old)
        if old == new:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is out of date: run scripts/check --fix")
            stale = 1
        else:
            path.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
