"""Where values come from, which of them wins, and what is said of a wrong one."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from agentsched.config import (
    BusConfig,
    ClientName,
    Config,
    EngineConfig,
    load_config,
)
from agentsched.config_access import OidcConfig
from agentsched.config_limits import LimitsConfig
from agentsched.model import MINUTE, SECOND, ConfigError, Limits, seconds

ROOT = Path(__file__).parent.parent
ENGINE = {"url": "http://127.0.0.1:8000"}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("AGENTSCHED_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(
        """
        port = 1
        profile = "passthrough"
        [http]
        body_bytes_max = 5000
        header_timeout = "3s"
        drain_timeout = 1.5
        [limits]
        max_wait = "1m"
        retries_max = 0
        [[engines]]
        url = "http://10.0.0.1:8000/v1"
        id = "a"
        """
    )
    return path


class TestPrecedence:
    def test_defaults(self) -> None:
        config = load_config()
        assert (config.host, config.port, config.profile) == ("127.0.0.1", 8900, "agentsched")
        assert config.limits.to_limits() == Limits()

    def test_the_file(self, file: Path) -> None:
        config = load_config(file)
        assert config.port == 1
        assert config.http.header_timeout == 3 * SECOND
        assert config.http.drain_timeout == 1_500_000_000
        assert config.limits.to_limits() == Limits(wait_ns_max=MINUTE, retries_max=0)
        assert config.engines[0].base_url == "http://10.0.0.1:8000"
        assert config.scheduler().profile == "passthrough"

    def test_the_environment_beats_the_file_key_by_key(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_PORT", "2")
        monkeypatch.setenv("AGENTSCHED_HTTP__BODY_BYTES_MAX", "6000")
        config = load_config(file)
        assert (config.port, config.http.body_bytes_max) == (2, 6000)
        assert config.http.header_timeout == 3 * SECOND  # its neighbour in the file stays

    def test_options_beat_both_key_by_key(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_LIMITS__MAX_WAIT", "2m")
        monkeypatch.setenv("AGENTSCHED_HOST", "0.0.0.0")
        options = {"limits": {"max_wait": "5s"}, "port": 3, "host": None, "engines": [ENGINE]}
        config = load_config(file, options)
        assert config.limits.max_wait == 5 * SECOND
        assert config.limits.retries_max == 0
        assert (config.host, config.port) == ("0.0.0.0", 3)
        assert [engine.name for engine in config.engines] == ["127.0.0.1:8000"]

    def test_engines_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTSCHED_ENGINES", '[{"url": "http://x:1", "id": "x"}]')
        assert load_config().engines[0].name == "x"


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("x = 1", "unknown key 'x'"),
            ("[http]\nx = 1", "http.x: Extra inputs are not permitted"),
            ("port = 'x'", "port: Input should be a valid integer"),
            ("[limits]\nmax_wait = 15", "limits.max_wait: too short"),
            ("[limits]\nmax_wait = '-1s'", "limits.max_wait: not a length of time"),
            ("[http]\nbody_timeout = -2.0", "http.body_timeout: too short"),
            ("[http]\nbody_timeout = '0s'", "http.body_timeout: too short"),
            ("[limits]\nready_steps_max = 0", "limits.ready_steps_max: Input should be greater"),
            ("[policies.smell]\nname = 'x'", "policies.smell"),
            ("[policies.order]\nparams = {}", "policies.order.name: Field required"),
            ("[[engines]]\nid = 'x'", "engines.0.url: Field required"),
            ("[[engines]]\nurl = 'http://h?x=1'", "engines.0.url: an engine's URL has no user"),
            ("[[engines]]\nurl = 'http://h'\nkv_events = 'h:5557'", "write tcp://HOST:PORT"),
            ("[[engines]]\nurl = 'http://h'\nkv_events = 'tcp://*:5557'", "we go to it"),
            ("[[engines]]\nurl = 'http://h'\nkv_events = 'tcp://h:0'", "from 1 to 65535"),
            ("[[engines]]\nurl = 'http://h'\nkv_events = 'tcp://u@h:1'", "write the host"),
            ("port = 1\nhost = 1\n[http]\nx = 1", "(and 1 more)"),
            ("port =", "is not TOML"),
            *(
                (f"[bus]\nurl = 'mqtt://{place}'", "bus.url: write mqtt://HOST:PORT")
                for place in ("", "h:99999", "h:x", "h:0", "broker..internal", "[::1", "h/x")
            ),
            *(
                (f"[bus]\nurl = 'mqtt://{place}'", f"bus.url: {says}")
                for place, says in (
                    (":hush@broker", "a password wants a user name: write mqtts://USER:"),
                    ("u:1?hush@broker", "write ? and # in a user name or a password as"),
                    ("u:1#hush@broker", "write ? and # in a user name or a password as"),
                )
            ),
            *(
                (f"[bus]\nurl = 'mqtt://broker'\n{key} = 'a.pem'", "bus: tls_ca, tls_certificate")
                for key in ("tls_ca", "tls_certificate", "tls_key")
            ),
            ("[bus]\nurl = 'mqtts://broker'\ntls_key = 'a.pem'", "tls_key needs a tls_certificate"),
            ("[identity]\ntenant_header = 'x y'", "identity.tenant_header"),
            ("[identity]\nextra_headers = ['x-a', 'x:']", "identity.extra_headers.1"),
            ("[telemetry.otlp_headers]\n'x y' = 'v'", "telemetry.otlp_headers.x y"),
            ('[telemetry.otlp_headers]\nx = "a\\nb"', "telemetry.otlp_headers.x: a key has no"),
            (
                "[auth]\nengine_hosts = ['gpu-*', '10.0.0.0/99']",
                "auth.engine_hosts.1: '10.0.0.0/99'",
            ),
            ("[http]\nbodies_bytes_max = 5000", "bodies_bytes_max is less than a single body"),
        ],
    )
    def test_name_file_and_key(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "a.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as wrong:
            load_config(path)
        assert says in str(wrong.value)
        assert "a.toml" in str(wrong.value)
        assert "\n" not in str(wrong.value)

    def test_the_file_is_not_blamed_for_others(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_HTTP__HEADERS_MAX", "x")
        with pytest.raises(ConfigError, match=r"^http\.headers_max: "):
            load_config(file)

    def test_no_host_would_be_every_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable that nobody filled in opens nothing."""
        monkeypatch.setenv("AGENTSCHED_HOST", "")
        with pytest.raises(ConfigError, match=r"^host: "):
            load_config()

    def test_no_json_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTSCHED_ENGINES", "http://x")
        with pytest.raises(ConfigError, match=r"environment: .*engines"):
            load_config()

    @pytest.mark.parametrize(
        ("variable", "says"),
        [
            ("ENGINES", "engines: Input should be a valid tuple"),
            ("WORKFLOWS", "workflows: Input should be a valid tuple"),
            ("IDENTITY__EXTRA_HEADERS", "identity.extra_headers: Input should be a valid tuple"),
            ("TELEMETRY__OTLP_HEADERS", "telemetry.otlp_headers: Input should be a valid dict"),
            ("HTTP", "http: Input should be a valid dict"),
        ],
    )
    def test_no_json_names_the_key_and_shows_nothing(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, says: str
    ) -> None:
        monkeypatch.setenv(f"AGENTSCHED_{variable}", "[s3cret")
        with pytest.raises(ConfigError) as wrong:
            load_config(file)
        assert str(wrong.value).startswith(f"environment: {says}")
        assert "JSON" in str(wrong.value)
        assert "s3cret" not in f"{wrong.value} {wrong.value.__cause__!r}"

    def test_tenants_of_the_environment_are_lower_case(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_TENANTS__ACME__WEIGHT", "3")
        monkeypatch.setenv("AGENTSCHED_TENANTS__red__WEIGHT", "2")
        monkeypatch.setenv("AGENTSCHED_TENANTS", '{"TeamA": {"weight": 4}}')
        weights = {name: tenant.weight for name, tenant in load_config().tenants.items()}
        assert weights == {"acme": 3, "red": 2, "TeamA": 4}
        monkeypatch.setenv("AGENTSCHED_TENANTS__TeamB__WEIGHT", "5")
        with pytest.raises(ConfigError, match=r"^environment: .*TENANTS='{\"TeamB\": {\.\.\.}}'"):
            load_config()

    def test_two_engines_of_one_name(self) -> None:
        with pytest.raises(ConfigError, match=r"two engines are called 127\.0\.0\.1:8000"):
            load_config(None, {"engines": [ENGINE, ENGINE]})


class TestSecrets:
    TEXT = """
    admin_key = "s3cret"
    [identity]
    secret = "s3cret"
    [[engines]]
    url = "http://x"
    api_key = "s3cret"
    """

    def test_are_not_shown(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "a.toml"
        path.write_text(self.TEXT)
        config = load_config(path)
        logging.getLogger("test").warning("%r %s", config, config)
        shown = [repr(config), str(config), caplog.text, config.model_dump_json()]
        assert not [text for text in shown if "s3cret" in text]
        assert config.admin_key is not None
        assert config.admin_key.get_secret_value() == "s3cret"

    def test_not_even_in_the_wrong_place(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        path.write_text(self.TEXT + "\nid = ['s3cret']")
        with pytest.raises(ConfigError) as wrong:
            load_config(path)
        assert "s3cret" not in f"{wrong.value} {wrong.value.__cause__!r}"

    @pytest.mark.parametrize("value", ["", " ", "\n"])
    @pytest.mark.parametrize("key", ["admin_key", "identity.secret", "engines.0.api_key"])
    def test_an_empty_one_is_none(self, key: str, value: str) -> None:
        """A variable that was not filled in: it would open what it should shut."""
        said: dict[str, dict[str, Any]] = {
            "admin_key": {"admin_key": value},
            "identity.secret": {"identity": {"secret": value}},
            "engines.0.api_key": {"engines": [ENGINE | {"api_key": value}]},
        }
        with pytest.raises(ConfigError, match=f"^{re.escape(key)}: it is empty"):
            load_config(None, said[key])

    def test_the_admin_key_is_as_headers_have_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One out of a file ends in a line break, which nobody can send."""
        monkeypatch.setenv("AGENTSCHED_ADMIN_KEY", "s3cret\n")
        key = load_config().admin_key
        assert key is not None
        assert key.get_secret_value() == "s3cret"
        for wrong in ("s3\ncret", "schlüssel"):
            monkeypatch.setenv("AGENTSCHED_ADMIN_KEY", wrong)
            with pytest.raises(ConfigError, match=r"^admin_key: .*a header cannot have") as refused:
                load_config()
            assert wrong not in str(refused.value)


class TestEngineUrls:
    @pytest.mark.parametrize(
        ("url", "base"),
        [
            ("http://h:1", "http://h:1"),
            ("http://h:1/", "http://h:1"),
            ("http://h:1/v1", "http://h:1"),
            ("http://h:1/v1/", "http://h:1"),
            ("https://h/path/v1", "https://h/path"),
            ("http://[::1]:8", "http://[::1]:8"),
        ],
    )
    def test_base(self, url: str, base: str) -> None:
        assert EngineConfig.model_validate({"url": url}).base_url == base


@pytest.mark.parametrize("place", ["h", "u:p@h:1", "mqtt_broker:1883", "[::1]:8", "böker.example"])
def test_places_of_brokers(place: str) -> None:
    assert BusConfig.model_validate({"url": f"mqtts://{place}"}).url is not None


def test_the_sample_is_the_default_and_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = load_config(ROOT / "docs" / "agentsched.toml")
    assert sample.engines
    plain = Config(engines=sample.engines)
    assert sample.model_copy(update={"limits": LimitsConfig()}) == plain
    assert sample.limits.to_limits() == Limits()


def tables() -> dict[str, type[BaseModel]]:
    """The tables of the file that are always there, by name."""
    found = {name: type(getattr(Config(), name)) for name in Config.model_fields}
    return {name: part for name, part in found.items() if issubclass(part, BaseModel)}


def test_the_sample_shows_every_key() -> None:
    parts = re.split(
        r"^(?:# )?\[+([\w.-]+)\]+$", (ROOT / "docs/agentsched.toml").read_text(), flags=re.M
    )
    shown = {"": parts[0]}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        shown[name] = shown.get(name, "") + text
    wanted = {"": Config, "engines": EngineConfig, "auth.oidc": OidcConfig, **tables()}
    for table, part in wanted.items():
        for key in part.model_fields:
            is_table = any(name.startswith(f"{table}.{key}".strip(".")) for name in shown)
            is_shown = re.search(rf"^(?:# )?{key} = ", shown[table], re.M)
            assert is_table or is_shown, f"[{table}] {key} is not in the sample"


def test_the_reference_has_every_table() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    for table in tables():
        assert f"### `[{table}]`" in page, f"[{table}] is not in the reference: see docs/draw.py"


class TestKeepAlive:
    def test_off(self) -> None:
        assert Config().http.keep_alive == {}

    def test_one_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTSCHED_HTTP__KEEP_ALIVE", '"240s"')
        found = load_config().http.keep_alive
        assert set(found) == set(get_args(ClientName))
        assert set(found.values()) == {seconds(240)}

    @pytest.mark.parametrize(("value", "wanted"), [("240s", seconds(240)), ("auto", "auto")])
    def test_one_for_all_as_it_is_written(
        self, monkeypatch: pytest.MonkeyPatch, value: str, wanted: object
    ) -> None:
        monkeypatch.setenv("AGENTSCHED_HTTP__KEEP_ALIVE", value)
        for found in (load_config().http.keep_alive, Config().http.keep_alive):
            assert found == dict.fromkeys(get_args(ClientName), wanted)

    def test_by_client(self, tmp_path: Path) -> None:
        path = tmp_path / "a.toml"
        path.write_text('[http]\nkeep_alive = { qwen = "90s", claude-code = "auto" }')
        assert load_config(path).http.keep_alive == {"qwen": seconds(90), "claude-code": "auto"}
        path.write_text('[http]\nkeep_alive = { nobody = "90s" }')
        with pytest.raises(ConfigError, match="keep_alive"):
            load_config(path)
