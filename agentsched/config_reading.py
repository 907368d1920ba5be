"""How the configuration is read: files, the environment, and what is said of a wrong value."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SettingsError

from agentsched.model import ConfigError

#: What is said of a text in the place of a list or a table.
_NO_TABLE: Final = frozenset({"tuple_type", "dict_type", "model_type"})
_TENANTS: Final = "AGENTSCHED_TENANTS__"


class Environment(EnvSettingsSource):
    """Reads `AGENTSCHED_*`. Raises `SettingsError` where a name is not clear."""

    def __call__(self) -> dict[str, Any]:
        """What was given, as tables."""
        _check_tenants()
        return super().__call__()

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list or a table from JSON; else the text, which some keys take in a table's place.

        Where none is taken whoever checks the values names the key and says what it wants.
        """
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _check_tenants() -> None:
    """Variables have no case to us, but names of tenants do."""
    for variable in os.environ:
        if variable.upper().startswith(_TENANTS):
            tenant = variable[len(_TENANTS) :].partition("__")[0]
            if tenant not in (tenant.lower(), tenant.upper()):
                shown = f"AGENTSCHED_TENANTS='{{\"{tenant}\": {{...}}}}'"
                raise SettingsError(
                    f"tenants are lower case in {variable}: write {shown} for this one"
                )


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; where both have a key, `above` has the word."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = over(old, value)
        merged[key] = value
    return merged


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def explain(
    error: ValidationError,
    path: Path | None,
    above: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> str:
    """One line that names the key, and the file where that is to blame.

    `above` is what was said elsewhere than in the file, `environment` what of it was said there.
    """
    first = error.errors(include_input=False)[0]
    where = [str(part) for part in first["loc"]]
    # The file is not to blame for what stands in the environment or on the command line.
    source = f"{path}: " if path and not _holds(above, where) else ""
    hint = ""
    if first["type"] in _NO_TABLE and _holds(environment, where):
        source, hint = "environment: ", " (lists and tables are JSON there)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    said = first["msg"].removeprefix("Value error, ")
    return f"{source}{'.'.join(where) or 'configuration'}: {said}{hint}{more}"


def _holds(values: Any, where: Sequence[str]) -> bool:
    """Whether the tables have this key."""
    for part in where:
        if isinstance(values, Mapping) and part in values:
            values = values[part]
        elif not isinstance(values, list):
            return False
    return True
