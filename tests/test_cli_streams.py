"""`ssehub streams`, `channels` and `statistics`, and the tables that they print."""

from __future__ import annotations

import json
import socket
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from commands import run
from conftest import RunningHub, StartHub, wait_until
from redis_servers import RedisServer
from ssehub.cli.table import cell, printable_json, table, width
from streams import RawStream, listen

pytest_plugins = ("redis_fixtures",)
NAMES = {
    "markup": "<script>alert(1)</script>",
    "long": "x" * 200,
    "right to left": "\u0645\u0631\u062d\u0628\u0627",
    "quotes": "'\"`\\",
    "percent": "100%25 %s {0}",
    "escape": "\x1b[2J\x07cleared",
    "overriding": "\u202eevil",
    "wide": "\u65e5\u672c\u8a9e",
}


@pytest.fixture
def crowded(start_hub: StartHub) -> Iterator[RunningHub]:
    """A hub with a stream of a user of each of NAMES, on a channel of the same name, and three of `hoarder`."""
    hub = start_hub()
    opened: list[RawStream] = [
        listen(hub.port, hub.issue(name, channels=[name, "all"]), f"User-Agent: {quote(kind)}/1")
        for kind, name in NAMES.items()
    ]
    opened += [listen(hub.port, hub.issue("hoarder", patterns=["a*"]), "User-Agent: loop.py") for _ in range(3)]
    for stream in opened:
        stream.read_until(b"stream-hello")
    yield hub
    for stream in opened:
        stream.close()


def test_h4_streams_are_printed_as_a_table_that_does_not_control_the_terminal(crowded: RunningHub) -> None:
    result = run("streams", "--control-url", crowded.control_url)

    head, *lines = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == ""
    assert head.split()[:5] == ["STREAM", "USER", "HEARS", "ADDRESS", "OPENED"]
    assert len(lines) == len(NAMES) + 3
    assert not [one for one in result.stdout if unicodedata.category(one) in ("Cc", "Cf") and one != "\n"]
    assert r"\x1b[2J\x07cleared" in result.stdout and r"\u202eevil" in result.stdout
    column = width(head[: head.index("ADDRESS")])
    assert all(_from_column(line, column).startswith("127.0.0.1 ") for line in lines)
    assert "x" * 30 + "…" in result.stdout and "x" * 41 not in result.stdout


def _from_column(line: str, column: int) -> str:
    at = 0
    while width(line[:at]) < column:
        at += 1
    return line[at:]


def test_h4_streams_are_printed_exactly_as_json(crowded: RunningHub) -> None:
    where = ("--json", "--control-url", crowded.control_url)

    everything = run("streams", *where)
    name = NAMES["escape"]
    of_one = run("streams", "--user-id", name, "--channel", name, "--address", "127.0.0.0/8", *where)
    elsewhere = run("streams", "--address", "192.0.2.0/24", *where)

    users = [json.loads(line)["userId"] for line in everything.stdout.splitlines()]
    assert users == [*NAMES.values(), "hoarder", "hoarder", "hoarder"]
    assert not [one for one in everything.stdout if unicodedata.category(one) in ("Cc", "Cf") and one != "\n"]
    assert [json.loads(line)["channels"] for line in of_one.stdout.splitlines()] == [[name, "all"]]
    assert elsewhere.stdout == "" and elsewhere.returncode == 0


def test_who_has_opened_most_streams(crowded: RunningHub) -> None:
    by_user = run("streams", "--by", "user", "--limit", "1", "--control-url", crowded.control_url)
    by_client = run("streams", "--by", "client", "--json", "--limit", "1", "--control-url", crowded.control_url)

    assert by_user.stdout.split() == ["USER", "STREAMS", "BACKLOG", "hoarder", "3", "0"]
    assert json.loads(by_client.stdout) == {"client": "loop.py", "streams": 3, "backlogBytes": 0}


def test_counts_of_very_many_groups_are_noted_as_too_low(start_hub: StartHub) -> None:
    code = "from ssehub.fanout import listing; listing.MAX_GROUPS = 1; from ssehub.cli import main; main()"
    hub = start_hub(code=code)
    streams = [listen(hub.port, hub.token(user_id=user)) for user in ("alex", "kim")]
    wait_until(lambda: httpx.get(f"{hub.control_url}/statistics").json()["total"]["subscribers"] == 2)

    result = run("streams", "--by", "user", "--control-url", hub.control_url)

    assert "there are very many groups: the counts may be too low" in result.stderr
    for stream in streams:
        stream.close()


def test_limit_is_kept_over_pages_and_noted(crowded: RunningHub) -> None:
    streams = run("streams", "--json", "--limit", "3", "--control-url", crowded.control_url)
    largest = run("streams", "--json", "--sort", "backlog", "--limit", "2", "--control-url", crowded.control_url)

    assert len(streams.stdout.splitlines()) == 3
    assert streams.stderr == "ssehub: these are the first 3: there are more, see --limit\n"
    assert len(largest.stdout.splitlines()) == 2 and largest.stderr == ""


def test_channels_are_printed_with_their_streams(crowded: RunningHub) -> None:
    result = run("channels", "--control-url", crowded.control_url)
    of_prefix = run("channels", "--prefix", "al", "--json", "--control-url", crowded.control_url)

    head, *lines = result.stdout.splitlines()
    assert head.split() == ["CHANNEL", "BY", "NAME", "BY", "PATTERN"]
    assert ["all", str(len(NAMES)), "3"] in [line.rsplit(maxsplit=2) for line in lines]
    assert json.loads(of_prefix.stdout) == {"channel": "all", "streams": len(NAMES), "patternStreams": 3}


def test_statistics_are_printed(crowded: RunningHub) -> None:
    result = run("statistics", "--control-url", crowded.control_url)

    found = json.loads(result.stdout)
    assert found["total"]["subscribers"] == len(NAMES) + 3 and found["node"]["control"] == "127.0.0.1:0"


def test_sort_and_by_exclude_each_other_and_a_bad_network_is_explained(hub: RunningHub) -> None:
    both = run("streams", "--sort", "backlog", "--by", "user", "--control-url", hub.control_url)
    network = run("streams", "--address", "10.0.0.1/8", "--control-url", hub.control_url)

    assert both.returncode == 2 and "--sort and --by are both given" in both.stderr
    assert network.returncode == 1 and "10.0.0.1/8 has host bits set" in network.stderr


def test_other_nodes_are_named_because_they_have_streams_of_their_own(start_hub: StartHub, valkey: RedisServer) -> None:
    hub, other = (start_hub("--broker", valkey.url) for _ in range(2))
    stream = listen(other.port, other.token("alex"))
    wait_until(lambda: len(httpx.get(f"{hub.control_url}/streams/").json()["nodes"] or ()) == 1, 20)

    here = run("streams", "--user-id", "alex", "--json", "--control-url", hub.control_url)
    there = run("streams", "--user-id", "alex", "--json", "--control-url", other.control_url)
    valkey.kill()
    wait_until(lambda: httpx.get(f"{hub.control_url}/streams/").json()["nodes"] is None, 20)
    unknown = run("channels", "--control-url", hub.control_url)
    stream.close()

    assert here.returncode == 0 and here.stdout == ""
    where = f"process {other.process.pid} of {socket.gethostname()}, control app at "
    assert f"another node has streams of its own: {where}" in here.stderr
    assert json.loads(there.stdout)["userId"] == "alex"
    assert unknown.returncode == 0 and "other nodes may have streams of their own: cannot use the log" in unknown.stderr


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("chat", 4, "chat"),
        ("chats", 4, "chat…"[:3] + "…"),
        ("", 4, ""),
        ("\u65e5\u672c\u8a9e", 6, "\u65e5\u672c\u8a9e"),
        ("\u65e5\u672c\u8a9e", 5, "\u65e5\u672c…"),
        ("e\u0301" * 4, 4, "e\u0301" * 4),
        ("a\tb\n", 20, r"a\tb\n"),
        ("\x1b]0;title\x07", 30, r"\x1b]0;title\x07"),
        ("\x1b\x1b", 6, r"\x1b…"),
        ("\u2066\U000e0041", 30, r"\u2066\U000e0041"),
        ("\x9b2J", 30, r"\x9b2J"),
    ],
)
def test_cell_is_escaped_and_cut_to_its_columns(text: str, most: int, shown: str) -> None:
    assert cell(text, most) == shown
    assert width(shown) <= most


def test_table_is_aligned_by_columns_of_the_terminal() -> None:
    rows = [("\u65e5\u672c", 5, "x"), ("e\u0301a", 1234, "y")]

    assert list(table(("NAME", "COUNT", "LAST"), rows)) == [
        "NAME  COUNT  LAST",
        "\u65e5\u672c      5  x",
        "e\u0301a     1234  y",
    ]


def test_table_without_rows_is_its_head() -> None:
    assert list(table(("NAME", "COUNT"), [])) == ["NAME  COUNT"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\u0645\u0631\u062d\u0628\u0627 \u65e5", '"\u0645\u0631\u062d\u0628\u0627 \u65e5"'),
        ("\x9b2J\x7f\x1b", r'"\u009b2J\u007f\u001b"'),
        ("\u202eevil\U000e0041\n", r'"\u202eevil\udb40\udc41\n"'),
        ("\ud800", r'"\ud800"'),
    ],
    ids=["letters", "control characters", "invisible characters", "surrogate"],
)
def test_h4_json_has_escapes_for_what_could_control_the_terminal(name: str, shown: str) -> None:
    assert printable_json(name) == shown
    assert json.loads(shown) == name


def test_json_over_several_lines_keeps_its_line_breaks() -> None:
    assert printable_json({"a": ["\x9b"]}, indent=2) == '{\n  "a": [\n    "\\u009b"\n  ]\n}'
