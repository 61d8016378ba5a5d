"""Settings: where they come from, what they take, and one clear line for what they don't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssehub.address import Address
from ssehub.config import Config, load_config
from ssehub.errors import ConfigError


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
def test_address_is_read_and_written(text: str, address: Address, is_loopback: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.is_loopback is is_loopback


@pytest.mark.parametrize(
    "text",
    ["", "8000", "host", "host:", "host:x", "host:65536", "::1:8000", "[::g]:1", "a b:1", "unix:", "host:-1", "h:٣"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"bind": text})

    assert str(caught.value).startswith(f"--bind {text!r}: ")
    assert "\n" not in str(caught.value)


def test_command_line_wins_over_environment_over_file_over_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('drain_seconds = 1\ngrace_seconds = 1\nexpiring_seconds = 1\ncors_origins = ["a"]\n')
    monkeypatch.setenv("SSEHUB_DRAIN_SECONDS", "2")
    monkeypatch.setenv("SSEHUB_GRACE_SECONDS", "2")
    monkeypatch.setenv("SSEHUB_CONTROL_HOSTS", "x, y,")

    config = load_config({"drain_seconds": "3"}, config_file=file)

    assert (config.drain_seconds, config.grace_seconds, config.expiring_seconds) == (3, 2, 1)
    assert (config.cors_origins, config.control_hosts, config.heartbeat_seconds) == (["a"], ["x", "y"], 15)


def test_file_is_named_by_the_environment_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("bind = ':9000'")
    monkeypatch.setenv("SSEHUB_CONFIG", str(tmp_path / "hub.toml"))

    assert load_config({}).bind == Address(None, 9000)


def test_secrets_are_read_from_files_without_their_line_end(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "key").write_text("the key\r\n")

    config = load_config({"secret_file": tmp_path / "secret", "control_key_file": str(tmp_path / "key")})

    assert config.secret is not None and config.secret.get_secret_value() == "from a file"
    assert config.control_key is not None and config.control_key.get_secret_value() == "the key"
    assert "from a file" not in repr(config)


BAD_SETTINGS = {
    "number": ({"heartbeat_seconds": "often"}, "--heartbeat-seconds 'often': input should be a valid number"),
    "negative": ({"heartbeat_seconds": -1}, "--heartbeat-seconds -1: input should be greater than or equal to 0"),
    "zero": ({"grace_seconds": 0}, "--grace-seconds 0: input should be greater than 0"),
    "infinite": ({"drain_seconds": "inf"}, "--drain-seconds 'inf': input should be a finite number"),
    "user-timeout": (
        {"tcp_user_timeout_seconds": "1e9"},
        "--tcp-user-timeout-seconds '1e9': input should be less than 2147483",
    ),
    "heartbeat": ({"heartbeat_seconds": 1e9}, "--heartbeat-seconds 1000000000.0: input should be less than or equal"),
    "level": ({"log_level": "loud"}, "--log-level 'loud': input should be 'debug', 'info', 'warning' or 'error'"),
    "broker": ({"broker": "kafka://x"}, "--broker 'kafka://x': there is no such broker: use memory://"),
    "cookie": ({"token_cookie": ""}, "--token-cookie '': string should have at least 1 character"),
    "key": ({"control_key": " "}, "control_key is empty"),
    "missing-file": ({"secret_file": "/nonexistent"}, "secret_file /nonexistent can't be read: No such file"),
    "folder": ({"control_key_file": "/"}, "control_key_file / can't be read: Is a directory"),
    "both": ({"secret": "x", "secret_file": "/x"}, "secret and secret_file are both given"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_bad_setting_is_one_line_that_names_it(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(settings)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind = 8000", 'hub.toml: bind 8000: an address is text, such as "127.0.0.1:8000"'),
        ('bind = "unix:a\\u0000b"', "it has no path for the Unix socket"),
        ("bnd = ':1'", "hub.toml: key bnd is no setting: did you mean bind?"),
        ("bind = ", "hub.toml is no TOML: "),
        ("\udcff", "hub.toml is no TOML: "),
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
        ("SSEHUB_BINDD", "x", "variable SSEHUB_BINDD is no setting: did you mean SSEHUB_BIND?"),
        ("SSEHUB_MAX_BODY_BYTES", "8M", "SSEHUB_MAX_BODY_BYTES '8M': input should be a valid integer"),
        ("SSEHUB_BIND", "x", "SSEHUB_BIND 'x': it has no port"),
        ("SSEHUB_REQUIRE_EXP", "perhaps", "SSEHUB_REQUIRE_EXP 'perhaps': input should be a valid boolean"),
    ],
)
def test_bad_variable_is_one_line_that_names_it(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_config({})

    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
