"""`ssehub listen`: what it prints, how it goes on, and how it ends."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from commands import run, running
from conftest import CONTROL_KEY, SECRET, RunningHub, StartHub
from ssehub.tokens import Tokens


@pytest.fixture
def hub(start_hub: StartHub) -> RunningHub:
    """One for each test, as these count the open streams."""
    return start_hub()


def where(hub: RunningHub) -> list[str]:
    return ["--url", hub.url, "--control-url", hub.control_url]


def test_events_are_printed_as_they_come(hub: RunningHub) -> None:
    with running("listen", *where(hub), "--channel", "chat", SSEHUB_SECRET=SECRET) as command:
        hub.wait_for("ssehub_subscribers", 1)
        hub.emit(data="one\ntwo")
        command.wait_for("one", "two")
        hub.emit(data="<b>é</b>", event="note")
        command.wait_for("<b>é</b>")
        code = command.interrupt()

    assert code == 130
    assert command.notes == [""]  # after the ^C that a terminal shows


def test_json_has_id_and_type(hub: RunningHub) -> None:
    with running("listen", *where(hub), "--json", "--since", "last:1", "--channel", "json") as command:
        hub.wait_for("ssehub_subscribers", 1)
        id = hub.emit(channel="json", data="x\ny", event="note")
        command.wait_for(json.dumps({"id": id, "event": "note", "data": "x\ny"}))


@pytest.mark.parametrize("way", ["file", "stdin", "environment", "option"])
def test_token_comes_in_every_way(hub: RunningHub, way: str, tmp_path: Path) -> None:
    token = hub.issue(channels=["a", "b"])
    (tmp_path / "token").write_text(f"{token}\n")
    options = {
        "file": ["--token-file", str(tmp_path / "token")],
        "stdin": ["--token", "-"],
        "environment": [],
        "option": ["--token", token],
    }[way]
    env = {"SSEHUB_TOKEN": token} if way == "environment" else {}
    with running("listen", *where(hub), *options, "--channel", "b", **env) as command:
        if way == "stdin":
            command.write(f"{token}\n")
            assert command.process.stdin is not None
            command.process.stdin.close()
        hub.wait_for("ssehub_subscribers", 1)
        hub.emit(channel="a", data="not this")
        hub.emit(channel="b", data="this")
        command.wait_for("this")

        assert command.lines == ["this"]
        assert [note for note in command.notes if token in note] == []
        assert len(command.notes) == (1 if way == "option" else 0)
        assert way != "option" or "ps shows it: use --token-file" in command.notes[0]


def test_hub_without_a_secret_here_is_asked_for_a_token(start_hub: StartHub) -> None:
    hub = start_hub("--control-key", CONTROL_KEY, env={"SSEHUB_SECRET": None})
    options = [*where(hub), "--pattern", "orders.*", "--user-id", "alex"]

    refused = run("listen", *options)
    with running("listen", *options, SSEHUB_CONTROL_KEY=CONTROL_KEY) as command:
        headers = {"Authorization": f"Bearer {CONTROL_KEY}"}
        end = time.monotonic() + 10
        while not command.lines and time.monotonic() < end:
            event = {"userId": "alex", "channel": "orders.7", "data": "x"}
            httpx.post(f"{hub.control_url}/emit/", json=event, headers=headers).raise_for_status()
            time.sleep(0.1)

    assert set(command.lines) == {"x"}
    assert refused.returncode == 1 and "the control key is missing or wrong: give" in refused.stderr


def test_listener_goes_on_after_a_restart_without_gap_or_repetition(start_hub: StartHub, tmp_path: Path) -> None:
    broker = ["--broker", f"sqlite:///{tmp_path}/events.db", "--drain-seconds", "2"]
    before = start_hub(*broker)
    ports = ["--bind", f"127.0.0.1:{before.port}", "--control-bind", f"127.0.0.1:{before.control_port}"]
    with running("listen", *where(before), "--channel", "chat", SSEHUB_SECRET=SECRET) as command:
        before.wait_for("ssehub_subscribers", 1)
        before.emit(data="1")
        command.wait_for("1")
        before.stop()
        after = start_hub(*broker, *ports)
        after.emit(data="2")
        command.wait_for("1", "2")
        after.process.kill()
        after.wait()
        again = start_hub(*broker, *ports)
        again.emit(data="3")
        command.wait_for("1", "2", "3")

    assert command.notes[0] == "ssehub: the hub is about to stop: reconnecting"
    assert [note for note in command.notes if "stream-reset" in note] == []


def test_busy_hub_is_waited_for(start_hub: StartHub) -> None:
    hub = start_hub("--max-connections", "1")
    token = hub.token()
    with running("listen", *where(hub), SSEHUB_TOKEN=token) as first:
        hub.wait_for("ssehub_subscribers", 1)
        with running("listen", *where(hub), SSEHUB_TOKEN=token) as second:
            hub.wait_for('ssehub_refused_total{reason="full"}', 1)
            first.interrupt()
            hub.wait_for("ssehub_subscribers", 0)
            hub.wait_for("ssehub_subscribers", 1, 20)
            hub.emit(data="x")
            second.wait_for("x")


def test_lost_events_are_told(start_hub: StartHub) -> None:
    before = start_hub()
    ports = ["--bind", f"127.0.0.1:{before.port}", "--control-bind", f"127.0.0.1:{before.control_port}"]
    with running("listen", *where(before), "--json", "--channel", "chat", SSEHUB_SECRET=SECRET) as command:
        before.wait_for("ssehub_subscribers", 1)
        id = before.emit(data="1")
        command.wait_for(json.dumps({"id": id, "event": "message", "data": "1"}))
        before.process.kill()
        before.wait()
        after = start_hub(*ports)
        after.wait_for("ssehub_subscribers", 1, 20)
        after.emit(data="2")
        end = time.monotonic() + 10
        while len(command.lines) < 3 and time.monotonic() < end:
            time.sleep(0.05)

    events = [json.loads(line) for line in command.lines]
    assert [(event["event"], event["data"]) for event in events] == [
        ("message", "1"),
        ("stream-reset", '{"reason":"log-lost"}'),
        ("message", "2"),
    ]
    assert any("stream-reset" in note for note in command.notes)


@pytest.mark.parametrize(("how", "code"), [("done", 0), ("failed", 1), ("stopped", 1)])
def test_run_is_printed_to_its_end(hub: RunningHub, how: str, code: int) -> None:
    name = f"answer-{how}"
    runs = f"{hub.control_url}/runs/{name}"
    httpx.put(runs, json={"userId": "alex", "channel": "chat"}).raise_for_status()
    httpx.post(runs, json={"data": "before"}).raise_for_status()
    token = hub.token()
    with running("listen", *where(hub), "--run", name, SSEHUB_TOKEN=token) as command:
        command.wait_for("before")
        httpx.post(runs, json={"data": "after"}).raise_for_status()
        command.wait_for("before", "after")
        if how == "stopped":
            run("runs", "stop", name, "--control-url", hub.control_url)
        else:
            httpx.post(f"{runs}/finish", json={} if how == "done" else {"error": "no model"}).raise_for_status()
        ended = command.wait()

    assert ended == code
    assert command.notes[-1].startswith("ssehub: stream-finished") and how in command.notes[-1]


def test_end_of_access_has_an_exit_code_of_its_own(hub: RunningHub) -> None:
    expired = run("listen", *where(hub), SSEHUB_TOKEN=hub.token(exp=1))
    refused = run("listen", *where(hub), SSEHUB_TOKEN=Tokens("x" * 32).issue("a", ["b"], expires_at=time.time() + 60))
    not_granted = run("listen", *where(hub), "--channel", "news", SSEHUB_TOKEN=hub.token())
    unknown = run("listen", *where(hub), "--run", "none", SSEHUB_TOKEN=hub.token())
    with running("listen", *where(hub), SSEHUB_TOKEN=hub.token("kim")) as command:
        hub.wait_for("ssehub_subscribers", 1)
        run("revoke", "--user-id", "kim", "--control-url", hub.control_url)
        revoked = command.wait()

    assert (expired.returncode, refused.returncode, not_granted.returncode, revoked) == (4, 4, 4, 4)
    assert "stream-expired" in expired.stderr
    assert "responded with 401" in refused.stderr and "responded with 403" in not_granted.stderr
    assert "news" in not_granted.stderr
    assert "stream-revoked" in command.notes[-1]
    assert unknown.returncode == 1 and "responded with 404" in unknown.stderr


def test_hub_that_is_not_there_is_reported(hub: RunningHub) -> None:
    result = run("listen", "--url", "http://127.0.0.1:1", "--retries", "1", SSEHUB_TOKEN=hub.token())
    other = run("listen", "--url", hub.control_url, SSEHUB_TOKEN=hub.token())

    assert result.returncode == 1 and "http://127.0.0.1:1 can't be used" in result.stderr
    assert other.returncode == 1 and "responded with 404" in other.stderr


def test_unix_socket_is_listened_to(start_hub: StartHub, tmp_path: Path) -> None:
    hub = start_hub("--bind", f"unix:{tmp_path}/hub.sock")
    config = tmp_path / "hub.toml"
    config.write_text(f'bind = "unix:{tmp_path}/hub.sock"\ncontrol_bind = "127.0.0.1:{hub.control_port}"\n')
    with running("listen", "--config", str(config), "--channel", "chat") as command:
        hub.wait_for("ssehub_subscribers", 1)
        run("emit", "--config", str(config), "--channel", "chat", "--data", "x")
        command.wait_for("x")
