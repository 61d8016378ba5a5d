"""`ssehub emit`, also of a stream of events from standard input."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from commands import run, running
from conftest import CONTROL_KEY, RunningHub, StartHub, wait_until
from streams import listen


def answers(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def stored(log: str) -> list[str]:
    """Return the data of all events in a log."""
    lines = run("log", "--broker", log, "--last", "100000").stdout.splitlines()
    return [json.loads(line)["data"] for line in lines]


def test_lines_are_published_as_they_come(hub: RunningHub) -> None:
    stream = listen(hub.port, hub.token(channel="lines"))
    with running("emit", "-", "--channel", "lines", "--control-url", hub.control_url) as command:
        command.write('{"data": "one"}\n')
        stream.read_event("one")
        command.write('{"data": "two", "userId": "alex", "event": "note"}\n\n{"data": "elsewhere", "channel": "x"}')
        code = command.end_input()
    stream.read_event("two")
    stream.close()

    assert code == 0
    assert [event.data for event in stream.events] == ["one", "two"]
    found = answers(command.lines)
    assert [answer["line"] for answer in found] == [1, 2, 4]
    assert [answer["id"] for answer in found][:2] == [event.id for event in stream.events]


def test_wrong_lines_are_named_and_all_others_are_published(start_hub: StartHub, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    hub = start_hub("--broker", log)
    lines = [
        '{"data": "1"}',
        '{"data": "2", "event": "stream-x"}',
        "no json",
        "[1]",
        '{"data": "5", "unknown": 1}',
        "[" * 100_000,
        '{"data": "7"}',
    ]

    result = run("emit", "-", "--channel", "chat", "--control-url", hub.control_url, stdin="\n".join(lines) + "\n")

    found = answers(result.stdout.splitlines())
    assert result.returncode == 1
    assert [(answer["line"], "id" in answer) for answer in found] == [
        *((1, True), (2, False), (3, False), (4, False), (5, False), (6, False), (7, True))
    ]
    assert "event 'stream-x' begins with" in found[1]["error"] and "not JSON" in found[2]["error"]
    assert "not a JSON object" in found[3]["error"] and "unknown" in found[4]["error"]
    assert stored(log) == ["1", "7"]


def test_file_of_more_lines_than_a_batch_may_have_is_published_in_order(start_hub: StartHub, tmp_path: Path) -> None:
    log, count = f"sqlite:///{tmp_path}/events.db", 5_000
    hub = start_hub("--broker", log, "--max-batch-events", "100")
    file = tmp_path / "events.ndjson"
    file.write_text("".join([json.dumps({"data": str(number)}) + "\n" for number in range(count)]))

    with file.open() as opened:
        result = run("emit", "-", "--channel", "chat", "--control-url", hub.control_url, stdin=opened)

    assert result.returncode == 0, result.stderr
    assert [answer["line"] for answer in answers(result.stdout.splitlines())] == list(range(1, count + 1))
    assert stored(log) == [str(number) for number in range(count)]


def test_line_that_the_hub_never_takes_does_not_keep_the_others_back(start_hub: StartHub, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    hub = start_hub("--broker", log)
    lines = ['{"data": "1"}', json.dumps({"data": "x" * 10 * 2**20}), '{"data": "3"}']

    result = run("emit", "-", "--channel", "chat", "--control-url", hub.control_url, stdin="\n".join(lines))

    assert ["id" in answer for answer in answers(result.stdout.splitlines())] == [True, False, True]
    assert stored(log) == ["1", "3"]


def test_interrupt_ends_the_command_while_it_waits_for_input(hub: RunningHub) -> None:
    with running("emit", "-", "--channel", "lines", "--control-url", hub.control_url) as command:
        command.write('{"data": "one"}\n')
        wait_until(lambda: command.lines)
        code = command.interrupt()

    assert code != 0 and not any(["Traceback" in note for note in command.notes])


def test_nothing_is_lost_or_doubled_over_a_restart_of_the_hub(start_hub: StartHub, tmp_path: Path) -> None:
    log = f"sqlite:///{tmp_path}/events.db"
    before = start_hub("--broker", log)
    with running("emit", "-", "--channel", "chat", "--control-url", before.control_url) as command:
        for number in range(100):
            command.write(json.dumps({"data": str(number)}) + "\n")
            if number == 30:
                wait_until(lambda: command.lines)
                before.process.kill()
                before.wait()
            if number == 60:
                wait_until(lambda: command.notes)
                start_hub("--broker", log, "--control-bind", f"127.0.0.1:{before.control_port}")
            time.sleep(0.002)
        code = command.end_input()

    assert code == 0, command.notes
    assert [answer["line"] for answer in answers(command.lines)] == list(range(1, 101))
    assert stored(log) == [str(number) for number in range(100)]
    assert all("trying again" in note for note in command.notes) and command.notes


def test_hub_that_does_not_come_back_is_reported_with_the_lines_that_are_missing(hub: RunningHub) -> None:
    url = "http://127.0.0.1:1"

    result = run("emit", "-", "--channel", "chat", "--control-url", url, "--retries", "0", stdin='{"data": "1"}\n' * 3)

    assert result.returncode == 1 and result.stdout == ""
    assert "lines 1 to 3 may or may not be stored, and nothing after that was sent" in result.stderr
    assert "can't be used at present" in result.stderr and "trying again" not in result.stderr


def test_wrong_key_ends_it_at_once(start_hub: StartHub) -> None:
    hub = start_hub("--control-key", CONTROL_KEY)

    result = run("emit", "-", "--channel", "chat", "--control-url", hub.control_url, stdin='{"data": "1"}\n' * 3)

    assert result.returncode == 1 and result.stdout == ""
    assert "the control key is missing or wrong: give --control-key-file" in result.stderr


def test_same_input_is_published_once_with_a_key(hub: RunningHub) -> None:
    where = ["--channel", "chat", "--control-url", hub.control_url, "--idempotency-key", "import-7"]
    lines = '{"data": "1"}\n{"data": "2"}\n'

    first, second = (run("emit", "-", *where, stdin=lines) for _ in range(2))

    assert first.stdout == second.stdout and first.stdout.count("\n") == 2


def test_hub_is_found_by_its_configuration(start_hub: StartHub, tmp_path: Path) -> None:
    socket, config = tmp_path / "control.sock", tmp_path / "hub.toml"
    (tmp_path / "key").write_text(CONTROL_KEY)
    config.write_text(f'control_bind = "unix:{socket}"\ncontrol_key_file = "{tmp_path}/key"\n')
    hub = start_hub("--config", str(config), "--control-bind", f"unix:{socket}")
    event = ["--channel", "chat", "--data", "x"]

    by_file = run("emit", *event, "--config", str(config))
    by_variables = run("emit", *event, SSEHUB_CONTROL_URL=f"unix:{socket}", SSEHUB_CONTROL_KEY=CONTROL_KEY)
    by_setting = run("emit", *event, SSEHUB_CONTROL_BIND=f"unix:{socket}", SSEHUB_CONTROL_KEY_FILE=f"{tmp_path}/key")
    option_wins = run(
        "emit", *event, "--control-url", "http://127.0.0.1:1", "--retries", "0", SSEHUB_CONTROL_URL=hub.control_url
    )

    assert [result.returncode for result in (by_file, by_variables, by_setting)] == [0, 0, 0], by_file.stderr
    assert option_wins.returncode == 1


def test_one_event_waits_for_the_restart_of_the_hub(start_hub: StartHub) -> None:
    before = start_hub()
    before.stop()
    with running("emit", "--channel", "chat", "--data", "x", "--control-url", before.control_url) as command:
        time.sleep(1.5)
        start_hub("--control-bind", f"127.0.0.1:{before.control_port}")
        code = command.wait()

    assert code == 0 and len(command.lines) == 1
    assert len(command.notes) == 1 and "can't be used at present" in command.notes[0]
