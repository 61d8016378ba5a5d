"""The commands that look at a running hub, at a token, or at this installation."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

import ssehub
from commands import run, run_bench, running
from conftest import CONTROL_KEY, SECRET, RunningHub, StartHub
from ssehub.tokens import Tokens
from streams import listen


def test_disconnect_ends_open_streams(hub: RunningHub) -> None:
    ended, open_ = listen(hub.port, hub.token("alex")), listen(hub.port, hub.token("kim"))

    result = run("disconnect", "--user-id", "alex", "--retry", "0", "--control-url", hub.control_url)
    ended.read_until(b"event: stream-revoked")
    hub.emit(data="x")
    open_.read_event("x")
    ended.close()
    open_.close()

    assert result.returncode == 0 and "-" in result.stdout


def test_runs_are_listed_shown_stopped_and_deleted(start_hub: StartHub) -> None:
    hub = start_hub()
    where = ["--control-url", hub.control_url]
    for name, user in (("a b?é", "alex"), ("c", "kim")):
        httpx.put(f"{hub.control_url}/runs/{quote(name)}", json={"userId": user, "channel": "chat"}).raise_for_status()

    listed = run("runs", "list", *where)
    of_kim = run("runs", "list", "--user-id", "kim", "--state", "open", *where)
    shown = run("runs", "show", "a b?é", *where)
    stopped = run("runs", "stop", "a b?é", *where)
    stale = run("runs", "stop", "c", "--generation", "7", *where)
    deleted = run("runs", "delete", "c", *where)
    gone = run("runs", "show", "c", *where)

    assert [json.loads(line)["run"] for line in listed.stdout.splitlines()] == ["a b?é", "c"]
    assert [json.loads(line)["run"] for line in of_kim.stdout.splitlines()] == ["c"]
    assert json.loads(shown.stdout)["state"] == "open" and json.loads(deleted.stdout)["run"] == "c"
    assert json.loads(stopped.stdout)["state"] in ("stopping", "stopped")
    assert stale.returncode == gone.returncode == 1
    assert "409" in stale.stderr and "there is no run 'c'" in gone.stderr


def test_token_is_taken_apart_without_its_signature(tmp_path: Path) -> None:
    token = Tokens(SECRET).issue("alex", ["chat"], expires_at=time.time() + 600)
    (tmp_path / "token").write_text(token)

    valid = run("token", "--inspect", "--token-file", str(tmp_path / "token"), SSEHUB_SECRET=SECRET)
    unchecked = run("token", "--inspect", SSEHUB_TOKEN=token)
    forged = run("token", "--inspect", "--token", "-", stdin=token, SSEHUB_SECRET="y" * 32)
    not_a_token = run("token", "--inspect", "--token", "-", stdin="mackerel.mackerel")

    found = json.loads(valid.stdout)
    assert valid.returncode == 0 and found["valid"] is True
    assert found["header"]["alg"] == "HS256" and found["claims"]["userId"] == "alex"
    assert found["times"]["exp"].startswith("20")
    assert unchecked.returncode == 0 and json.loads(unchecked.stdout)["valid"] is None
    assert forged.returncode == 4 and json.loads(forged.stdout)["valid"] is False
    assert "signature" in json.loads(forged.stdout)["reason"]
    assert not_a_token.returncode == 1 and "not made of three" in not_a_token.stderr
    printed = "".join([each.stdout + each.stderr for each in (valid, unchecked, forged, not_a_token)])
    assert token.rpartition(".")[2] not in printed and "mackerel" not in printed


def test_expired_token_is_said_to_be_expired() -> None:
    token = Tokens(SECRET, now=lambda: time.time() - 900).issue("alex", ["chat"], expires_at=time.time() - 60)

    result = run("token", "--inspect", SSEHUB_TOKEN=token, SSEHUB_SECRET=SECRET)

    assert result.returncode == 4
    assert json.loads(result.stdout)["reason"] == "the token has expired"


def test_hub_with_a_random_secret_is_asked_for_tokens(start_hub: StartHub) -> None:
    hub = start_hub(env={"SSEHUB_SECRET": None})

    result = run(
        "token", "--user-id", "alex", "--channel", "chat", "--expires-in", "1h", "--control-url", hub.control_url
    )
    stream = listen(hub.port, result.stdout.strip())
    hub.emit(data="x")
    stream.read_event("x")
    stream.close()

    assert result.returncode == 0


def test_log_follows(tmp_path: Path, start_hub: StartHub) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    hub = start_hub("--broker", log)
    hub.emit(data="before")
    with running("log", "--broker", log, "--follow", "--last", "1") as command:
        _wait_for(command.lines, "before")
        hub.emit(data="elsewhere", channel="news")
        hub.emit_batch([{"userId": "*", "channel": "chat", "data": str(number)} for number in range(3)])
        _wait_for(command.lines, "before", "elsewhere", "0", "1", "2")
        code = command.interrupt()

    assert code == 130
    positions = [json.loads(line)["position"] for line in command.lines]
    assert len(set(positions)) == len(positions) == 5


def test_log_follows_one_channel_from_now_on(tmp_path: Path, start_hub: StartHub) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    hub = start_hub("--broker", log)
    hub.emit(data="before")
    with running("log", "--broker", log, "-f", "--last", "0", "--channel", "chat") as command:
        end = time.monotonic() + 10
        while not command.lines and time.monotonic() < end:  # the first events may come before it looks
            hub.emit(data="elsewhere", channel="news")
            hub.emit(data="x")
            time.sleep(0.1)

    assert {json.loads(line)["data"] for line in command.lines} == {"x"}


def _wait_for(lines: list[str], *data: str) -> None:
    end = time.monotonic() + 15
    while [json.loads(line)["data"] for line in lines] != [*data]:
        assert time.monotonic() < end, lines
        time.sleep(0.05)


def test_versions_are_printed() -> None:
    result = run("version")

    lines = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert lines["ssehub"] == ssehub.__version__
    assert lines.keys() >= {"Python", "starlette", "uvicorn", "pydantic", "redis", "cryptography"}
    assert "pytest" not in lines


def test_bench_finds_the_hub_as_other_commands_do(start_hub: StartHub, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CONTROL_KEY)
    client, control = f"unix:{tmp_path}/client.sock", f"unix:{tmp_path}/control.sock"
    start_hub("--bind", client, "--control-bind", control, "--control-key", CONTROL_KEY)

    by_options = run_bench(client, "--control-key-file", str(tmp_path / "key"), control_url=control)
    by_settings = run(
        *("bench", "--subscribers", "2", "--events", "3", "--json"),
        SSEHUB_BIND=client,
        SSEHUB_CONTROL_BIND=control,
        SSEHUB_CONTROL_KEY_FILE=str(tmp_path / "key"),
    )

    assert by_options.returncode == 0, by_options.stderr
    assert by_settings.returncode == 0, by_settings.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSEHUB_PORT", "tcp://10.0.0.1:8000"),
        ("SSEHUB_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("SSEHUB_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("SSEHUB_SERVICE_HOST", "10.0.0.1"),
        ("SSEHUB_SERVICE_PORT_HTTP", "8000"),
        ("SSEHUB_CONTROL_PORT", "tcp://10.0.0.2:8001"),
        ("SSEHUB_CONTROL_SERVICE_PORT", "8001"),
        ("SSEHUB_PORT_8000_TCP_PORT", "8000"),
    ],
)
def test_variables_that_kubernetes_sets_for_a_service_are_ignored(name: str, value: str) -> None:
    result = run("check", **{name: value})

    assert result.returncode == 0, result.stderr
    assert f"ignored: {name}, which Kubernetes sets for a Service" in result.stdout


def test_hub_starts_beside_a_service_of_its_name_and_says_what_it_ignores(start_hub: StartHub) -> None:
    hub = start_hub(env={"SSEHUB_PORT": "tcp://10.0.0.1:8000"})

    assert hub.log.count("SSEHUB_PORT is ignored: Kubernetes sets it for a Service") == 1


@pytest.mark.parametrize(("name", "value"), [("SSEHUB_PORT", "8000"), ("SSEHUB_HOST", "0.0.0.0")])
def test_variables_of_other_servers_are_hinted_at(name: str, value: str) -> None:
    result = run("serve", **{name: value})

    assert result.returncode == 2
    assert result.stderr == f"ssehub: unknown variable {name}: set SSEHUB_BIND=HOST:PORT\n"
