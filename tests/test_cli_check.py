"""`ssehub check`: what a start would do, without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certificates import CertificateAuthority
from commands import run
from conftest import CONTROL_KEY, SECRET
from redis_servers import RedisServer
from ssehub.config import Config

pytest_plugins = ("redis_fixtures",)


def setting(output: str, name: str) -> str:
    found = re.search(rf"^{name} +(.*)$", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_each_setting_is_shown_with_where_it_comes_from(tmp_path: Path) -> None:
    config = tmp_path / "hub.toml"
    config.write_text('bind = "127.0.0.1:9000"\ndrain_seconds = 3\ncors_origins = ["https://a.example"]\n')

    result = run(
        *("check", "--config", str(config), "--drain-seconds", "4", "--no-require-exp"),
        SSEHUB_WORKERS="1",
        SSEHUB_BIND="127.0.0.1:9001",
    )

    shown = {name: setting(result.stdout, name) for name in Config.model_fields}
    assert result.returncode == 0 and result.stderr == ""
    assert shown["drain_seconds"] == "4.0  [--drain-seconds]"
    assert shown["require_exp"] == "false  [--require-exp]"
    assert shown["bind"] == "127.0.0.1:9001  [SSEHUB_BIND]"
    assert shown["cors_origins"] == f"https://a.example  [{config}]"
    assert shown["heartbeat_seconds"] == "15.0  [default]"
    assert result.stdout.endswith("a hub can start\n")


def test_no_secret_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n{SECRET}-old\n")
    (tmp_path / "key").write_text(CONTROL_KEY)

    files = run("check", "--secret-file", str(tmp_path / "secret"), "--control-key-file", str(tmp_path / "key"))
    given = run(
        "check", "--secret", SECRET, SSEHUB_CONTROL_KEY=CONTROL_KEY, SSEHUB_BROKER="redis://alex:mackerel@127.0.0.1:1"
    )

    assert "secrets and keys of tokens: 2 secret(s) in" in files.stdout
    assert setting(files.stdout, "control_key") == "not set  [default]"
    assert setting(given.stdout, "secret") == "set, not shown  [--secret]"
    assert "warning: the secret is on the command line" in given.stdout
    printed = files.stdout + files.stderr + given.stdout + given.stderr
    assert SECRET not in printed and CONTROL_KEY not in printed and "mackerel" not in printed


def test_warnings_are_those_of_a_start() -> None:
    result = run("check", "--bind", ":8000", "--secret", "too-short")

    assert result.returncode == 0
    assert "warning: bind :8000 accepts connections from other machines without TLS" in result.stdout
    assert "warning: the secret is short and might be guessed" in result.stdout


def test_certificates_are_shown_with_their_ends(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    certificate = authority.issue(["localhost"])

    result = run("check", "--tls-cert-file", str(certificate.cert_file), "--tls-key-file", str(certificate.key_file))

    found = re.search(
        r"^certificates: (.*), for localhost, ends at 20\d\d-\d\d-\d\d \d\d:\d\d UTC$", result.stdout, re.M
    )
    assert result.returncode == 0 and found, result.stdout


@pytest.mark.parametrize("broken", ["file", "setting", "key", "certificate", "control-key", "workers"])
def test_what_is_broken_is_named(broken: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("mackerel = [")
    arguments, message = {
        "file": (["--config", str(bad)], f"{bad}: not valid TOML"),
        "setting": (["--drain-seconds", "soon"], "--drain-seconds 'soon': must be a valid number"),
        "key": (["--secret-file", str(tmp_path / "none")], "secret_file"),
        "certificate": (["--tls-cert-file", str(bad), "--tls-key-file", str(bad)], "tls_cert_file"),
        "control-key": (["--control-keys-file", str(bad)], "control_keys_file"),
        "workers": (["--workers", "2"], "2 workers need a log that they can share"),
    }[broken]

    result = run("check", *arguments, SSEHUB_CONTROL_KEY="too-short" if broken == "certificate" else CONTROL_KEY)

    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert broken not in ("file", "setting") or result.stderr.count("\n") == 1
    assert broken in ("file", "setting") or result.stdout.endswith("a hub can't start\n")
    assert broken != "certificate" or "control_key has 9 bytes" in result.stdout  # everything that is wrong is named


def test_broker_is_reached(valkey: RedisServer) -> None:
    reachable = run("check", "--broker", valkey.url)
    valkey.kill()
    gone = run("check", "--broker", valkey.url)

    assert reachable.returncode == 0 and ": reachable, empty" in reachable.stdout
    assert gone.returncode == 3 and "error: cannot use the log at" in gone.stdout


def test_log_in_a_file_is_not_made(tmp_path: Path) -> None:
    good = run("check", "--broker", f"sqlite:///{tmp_path}/events.db")
    no_folder = run("check", "--broker", f"sqlite:///{tmp_path}/none/events.db")
    (tmp_path / "broken.db").write_text("not a database" * 1_000)
    broken = run("check", "--broker", f"sqlite:///{tmp_path}/broken.db")

    assert good.returncode == 0 and "will be created" in good.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.db"]
    assert no_folder.returncode == broken.returncode == 3
