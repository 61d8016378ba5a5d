"""Settings from the command line, the environment and a file: which counts, and one clear line for a bad one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from ssehub.address import Address
from ssehub.config import Config, load_config
from ssehub.errors import ConfigError
from ssehub.settings import Backpressure, Retention, Streams


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Config.model_fields:
        monkeypatch.delenv(f"SSEHUB_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "address", "is_loopback"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), True),
        ("127.9.9.9:0", Address("127.9.9.9", 0), True),
        ("localhost:80", Address("localhost", 80), True),
        (":8000", Address(None, 8000), False),
        ("0.0.0.0:8000", Address("0.0.0.0", 8000), False),
        ("[::1]:8000", Address("::1", 8000), True),
        ("[::]:8000", Address("::", 8000), False),
        ("hub.example:8000", Address("hub.example", 8000), False),
        ("unix:/run/ssehub.sock", Address(None, 0, "/run/ssehub.sock"), True),
    ],
)
def test_address_is_parsed_and_written(text: str, address: Address, is_loopback: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.is_loopback is is_loopback


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must end with a port"),
        ("8000", "must end with a port"),
        ("host", "must end with a port"),
        ("host:", "must end with a port"),
        ("host:x", "must end with a port"),
        ("host:65536", "must end with a port"),
        ("host:-1", "must end with a port"),
        ("h:٣", "must end with a port"),
        ("::1:8000", "must have its IPv6 address in brackets"),
        ("[::g]:1", "must have an IPv6 address in its brackets"),
        ("a b:1", "must have a host name without spaces"),
        ("unix:", "must name the path of a Unix socket"),
    ],
)
def test_invalid_address_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"bind": text})

    assert str(caught.value).startswith(f"--bind {text!r}: {reason}")
    assert "\n" not in str(caught.value)


def test_command_line_wins_over_environment_over_file_over_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('drain_seconds = 1\ngrace_seconds = 1\nexpiring_seconds = 1\ncors_origins = ["https://a"]\n')
    monkeypatch.setenv("SSEHUB_DRAIN_SECONDS", "2")
    monkeypatch.setenv("SSEHUB_GRACE_SECONDS", "2")
    monkeypatch.setenv("SSEHUB_CONTROL_HOSTS", "x, y,")

    config = load_config({"drain_seconds": "3"}, config_file=file)

    streams = config.group(Streams)
    assert (config.drain_seconds, config.group(Backpressure).grace_seconds, streams.expiring_seconds) == (3, 2, 1)
    assert (config.cors_origins, config.control_hosts, streams.heartbeat_seconds) == (["https://a"], ["x", "y"], 15)


def test_variable_counts_in_any_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("drain_seconds = 1")
    monkeypatch.setenv("ssehub_drain_seconds", "2")

    assert load_config({}, config_file=tmp_path / "hub.toml").drain_seconds == 2


def test_file_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("bind = ':9000'")
    monkeypatch.setenv("SSEHUB_CONFIG", str(tmp_path / "hub.toml"))

    assert load_config({}).bind == Address(None, 9000)


def test_group_has_the_settings_that_were_given() -> None:
    config = load_config({"history_events": "7", "control_bind": "off"})

    assert config.group(Retention) == Retention(history_events=7)
    assert config.control_bind is None


def test_config_can_be_sent_to_another_process() -> None:
    config = load_config({"history_events": "7", "secret": "x", "bind": ":9000"})

    assert pickle.loads(pickle.dumps(config)) == config


def test_control_key_is_read_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the key\r\n")

    config = load_config({"control_key_file": str(tmp_path / "key")})

    assert config.control_key is not None and config.control_key.get_secret_value() == "the key"
    assert "the key" not in repr(config)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "number": ({"heartbeat_seconds": "often"}, "--heartbeat-seconds 'often': must be a valid number"),
    "negative": ({"heartbeat_seconds": -1}, "--heartbeat-seconds -1: must be at least 0"),
    "zero": ({"grace_seconds": 0}, "--grace-seconds 0: must be greater than 0"),
    "infinite": ({"drain_seconds": "inf"}, "--drain-seconds 'inf': must be a finite number"),
    "infinite-of-a-group": ({"grace_seconds": "inf"}, "--grace-seconds 'inf': must be a finite number"),
    "fraction": ({"history_events": "1.5"}, "--history-events '1.5': must be a valid integer"),
    "user-timeout": (
        {"tcp_user_timeout_seconds": "1e9"},
        "--tcp-user-timeout-seconds '1e9': must be less than 2147483",
    ),
    "heartbeat": ({"heartbeat_seconds": 1e9}, "--heartbeat-seconds 1000000000.0: must be at most 86400"),
    "prefix": ({"redis_prefix": "a b"}, "--redis-prefix 'a b': must be 1 to 100 characters without spaces or braces"),
    "level": ({"log_level": "loud"}, "--log-level 'loud': must be 'debug', 'info', 'warning' or 'error'"),
    "format": ({"log_format": "xml"}, "--log-format 'xml': must be 'text' or 'json'"),
    "workers": ({"workers": "0"}, "--workers '0': must be greater than 0"),
    "broker": ({"broker": "kafka://x"}, "--broker 'kafka://x': unknown broker: use memory://"),
    "cookie": ({"token_cookie": ""}, "--token-cookie '': must have at least 1 character"),
    "key": ({"control_key": " "}, "control_key is empty"),
    "missing-file": ({"control_key_file": "/nonexistent"}, "control_key_file /nonexistent can't be read: No such file"),
    "folder": ({"control_key_file": "/"}, "control_key_file / can't be read: Is a directory"),
    "both": ({"secret": "x", "secret_file": "/x"}, "secret and secret_file are both given"),
    "lifetime": (
        {"secret": "x", "max_token_seconds": 3_600},
        "token_lifetime_seconds 86400 is more than max_token_seconds 3600: set it to 3600 or less",
    ),
    "lifetime-by-a-random-secret": (
        {"token_lifetime_seconds": 601, "max_token_seconds": 600},
        "token_lifetime_seconds 601 is more than max_token_seconds 600: ",
    ),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_bad_setting_is_one_line_that_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"secret": "x", "token_lifetime_seconds": 3_600, "max_token_seconds": 3_600},
        {"jwks": "https://login.example/jwks.json", "max_token_seconds": 3_600},  # issues no tokens
    ],
    ids=["equal", "without-a-secret"],
)
def test_lifetime_may_be_as_long_as_tokens_may_be_valid(settings: dict[str, Any]) -> None:
    assert load_config(settings).max_token_seconds == 3_600


@pytest.mark.parametrize("broker", ["redis//u:mackerel@host", "redis:/u:mackerel@host", "rediss+x://:mackerel@host/@"])
def test_password_in_an_invalid_broker_is_not_shown(broker: str) -> None:
    with pytest.raises(ConfigError, match="unknown broker") as caught:
        load_config({"broker": broker})

    assert "mackerel" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind = 8000", 'hub.toml: line 1: bind 8000: must be a string, such as "127.0.0.1:8000"'),
        ('bind = "unix:a\\u0000b"', "must name the path of a Unix socket"),
        ("broker = ['redis://u:pw@host']", "hub.toml: line 1: broker '...': must be a valid string"),
        ("secret = 5", "hub.toml: line 1: secret: must be a valid string"),
        ("cors_origins = 5", "hub.toml: line 1: cors_origins 5: must be a valid list"),
        ("bnd = ':1'", "hub.toml: line 1: unknown key bnd: did you mean bind?"),
        ("BIND = ':1'", "hub.toml: line 1: unknown key BIND"),
        ("# a comment\n\n xyzzy = 1", "hub.toml: line 3: unknown key xyzzy: there is no such setting"),
        ("bind = ", "hub.toml: not valid TOML: "),
        ("\udcff", "hub.toml: not valid TOML: "),
        (None, "hub.toml: No such file or directory"),
    ],
)
def test_bad_file_is_one_line_that_names_it(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(ConfigError) as caught:
        load_config({}, config_file=file)

    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SSEHUB_BINDD", "x", "unknown variable SSEHUB_BINDD: did you mean SSEHUB_BIND?"),
        ("SSEHUB_MAX_BODY_BYTES", "8M", "SSEHUB_MAX_BODY_BYTES '8M': must be a valid integer"),
        ("SSEHUB_BIND", "x", "SSEHUB_BIND 'x': must end with a port"),
        ("SSEHUB_REQUIRE_EXP", "perhaps", "SSEHUB_REQUIRE_EXP 'perhaps': must be a valid boolean"),
        ("ssehub_grace_seconds", "0", "ssehub_grace_seconds '0': must be greater than 0"),
    ],
)
def test_bad_variable_is_one_line_that_names_it(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as caught:
        load_config({})

    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("level", ["INFO", "info", "Info"])
def test_log_level_is_accepted_in_any_case(level: str) -> None:
    assert load_config({"log_level": level}).log_level == "info"


@pytest.mark.parametrize("format", ["JSON", "json", "Json"])
def test_log_format_is_accepted_in_any_case(format: str) -> None:
    assert load_config({"log_format": format}).log_format == "json"
