"""`ssehub trace` and `ssehub explain`: what they print, and how they end."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from commands import RunningCommand, run, running
from conftest import CONTROL_KEY, SECRET, RunningHub, StartHub, free_port, wait_until
from streams import listen


def test_trace_prints_a_line_for_each_step(hub: RunningHub) -> None:
    with running("trace", "--control-url", hub.control_url, "--user-id", "<b>\u202eal") as command:
        wait_until(lambda: tries(command, hub), 20)
        code = command.interrupt()

    shown = next(line for line in command.lines if "opened" in line)
    assert re.fullmatch(r"\S+Z  opened     0-\d+  user <b>\\u202eal  on chat  from 127\.0\.0\.1  test/1", shown)
    assert any(re.search(r"ended .* disconnected, \d+\.\d+ s, 0 events, 0 bytes$", line) for line in command.lines)
    assert code == 130


def tries(command: RunningCommand, hub: RunningHub) -> bool:
    """Open and close a stream; return True if the command has seen the end of one."""
    listen(hub.port, hub.token(user_id="<b>\u202eal"), "User-Agent: test/1").close()
    shown = "".join(command.lines)
    return "opened" in shown and "ended" in shown


def test_trace_goes_on_when_the_hub_is_back(start_hub: StartHub) -> None:
    addresses = [f"--bind=127.0.0.1:{free_port()}", f"--control-bind=127.0.0.1:{free_port()}"]
    hub = start_hub(*addresses)
    with running("trace", "--control-url", hub.control_url, "--json") as command:
        wait_until(lambda: tries(command, hub), 20)
        hub.process.send_signal(signal.SIGTERM)
        hub.process.wait(20)
        wait_until(lambda: any("reconnecting" in note for note in command.notes), 20)
        command.lines.clear()
        again = start_hub(*addresses)
        wait_until(lambda: tries(command, again), 30)

    assert json.loads(command.lines[0])["step"] in ("opened", "ended")


def test_trace_without_its_key_says_which_option_gives_it(start_hub: StartHub) -> None:
    hub = start_hub("--control-key", CONTROL_KEY)

    refused = run("trace", "--control-url", hub.control_url)

    assert refused.returncode == 1
    assert "the control key is missing or wrong: give --control-key-file" in refused.stderr


def test_explain_says_what_failed_and_what_to_do(hub: RunningHub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(hub.token())
    options = ["--control-url", hub.control_url, "--token-file", str(tmp_path / "token")]

    good = run("explain", *options, "--origin", "https://app.example")
    bad = run("explain", *options, "--channel", "news", "--json")

    assert good.returncode == 0
    assert re.search(r"^ok      signature   a secret or key of this hub has made it$", good.stdout, re.M)
    assert good.stdout.endswith("the stream would open, with the next event\n")
    answer = json.loads(bad.stdout)
    assert (bad.returncode, answer["would"], answer["status"]) == (1, "refuse", 403)
    assert answer["workers"] == {"0": "refuse"}
    assert SECRET not in bad.stdout + good.stdout


def test_explain_of_a_user_without_a_token_says_what_a_stream_would_begin_with(start_hub: StartHub) -> None:
    hub = start_hub()
    hub.emit(data="one")
    options = ["--control-url", hub.control_url, "--user-id", "kim", "--channel", "chat"]

    from_the_past = run("explain", *options, "--since", "earliest")
    after_a_loss = run("explain", *options, "--last-event-id", "1-1.foreign0")

    assert from_the_past.stdout.endswith("the stream would open, with 1 events of the past\n")
    assert "with a reset (log-lost)" in after_a_loss.stdout


def test_explain_says_what_is_missing(hub: RunningHub) -> None:
    nothing = run("explain", "--control-url", hub.control_url)
    both = run("explain", "--control-url", hub.control_url, "--token", "x.y.z", "--user-id", "kim")

    assert nothing.returncode == both.returncode == 2
    assert "no token is given: use --token-file" in nothing.stderr and "or give --user-id" in nothing.stderr
    assert "--user-id and --pattern are for a client without a token" in both.stderr
