"""`GET /streams/` and `GET /channels/`, of one hub and of several workers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from boards import workers
from control_requests import control_app
from fakes import FakeSink
from ssehub.web.board import Answers

pytestmark = pytest.mark.anyio
CONTROL_API = Path(__file__).parent.parent / "docs" / "control-api.md"
AWKWARD = {
    "markup": "<script>alert(1)</script>",
    "long": "\U0001f600" * 200,
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "overriding direction": "\u202eevil\u202c",
    "quotes": "'\"`\\",
    "percent": "100%25 %s {0}",
    "escape": "\x1b[2Jcleared\x07",
    "comma and space": "a, b ",
    "combining": "e\u0301\u0323",
}


class FadingBoard:
    """A board whose workers name channels, and then answer nothing any more."""

    async def ask(self, question: str, arguments: Any) -> Answers:
        return Answers({}, ["0"]) if "names" in arguments else Answers({"0": [{"names": ["chat"]}]}, [])

    def follow(self, question: str, arguments: Any) -> Any:
        raise AssertionError


def numbers(page: dict[str, Any]) -> list[str]:
    return [f"{stream['worker']}-{stream['number']}" for stream in page["streams"]]


async def test_streams_of_a_hub_that_is_alone() -> None:
    async with control_app() as app:
        page = (await app.http.get("/streams")).json()

    assert numbers(page) == ["0-1", "0-2"]
    assert page["next"] is None and page["missing"] == [] and page["nodes"] == []
    assert set(page["node"]) == {"id", "host", "pid", "control", "startedAt", "version"}
    assert page["streams"][1] | {"openedAt": "", "lastId": ""} == {
        "worker": "0",
        "number": 2,
        "userId": "kim",
        "channels": ["chat", "news"],
        "patterns": [],
        "address": None,
        "client": None,
        "openedAt": "",
        "lastId": "",
        "events": 0,
        "bytes": 0,
        "backlogBytes": 0,
        "state": "live",
    }


async def test_pages_go_through_the_workers_one_after_the_other(tmp_path: Path) -> None:
    async with workers(tmp_path, 3) as group:
        for worker, count in ((0, 3), (2, 4)):
            for number in range(count):
                group.join(worker, f"user{number}")
        pages = [await group.get("/streams/?limit=2")]
        while pages[-1]["next"] is not None:
            pages.append(await group.get(f"/streams/?limit=2&cursor={pages[-1]['next']}"))

    found = [numbers(page) for page in pages]
    assert found == [["0-1", "0-2"], ["0-3", "2-1"], ["2-2", "2-3"], ["2-4"]]
    assert [page["next"] for page in pages] == ["0-2", "2-1", "2-3", None]


async def test_filters_are_combined_over_all_workers(tmp_path: Path) -> None:
    async with workers(tmp_path) as group:
        group.join(0, "alex", "chat", address="10.0.0.1")
        group.join(1, "alex", "chat", address="10.9.9.9")
        group.join(1, "alex", patterns=("ch*",), address="2001:db8::5")
        group.join(1, "kim", "chat", address="")

        by_user = await group.get("/streams/?userId=alex")
        by_all = await group.get("/streams/?userId=alex&channel=chat&address=10.0.0.0/8")
        by_network = await group.get("/streams/?address=2001:db8::/64")
        by_socket = await group.get("/streams/?address=unix")

    assert numbers(by_user) == ["0-1", "1-1", "1-2"]
    assert numbers(by_all) == ["0-1", "1-1"]
    assert numbers(by_network) == ["1-2"]
    assert numbers(by_socket) == ["1-3"] and by_socket["streams"][0]["address"] == "unix"


async def test_largest_backlogs_of_all_workers_come_first(tmp_path: Path) -> None:
    async with workers(tmp_path) as group:
        for worker, user, events in ((0, "little", 1), (1, "much", 3), (0, "some", 2)):
            group.join(worker, user, user, sink=FakeSink(reads=False))
            for _ in range(events):
                await group.hubs[worker].publish(channel=user, user_id="*", data="x" * 5_000)
            await group.hubs[worker].flush()
        group.join(1, "nothing")

        page = await group.get("/streams/?sort=backlog&limit=3")

    assert [stream["userId"] for stream in page["streams"]] == ["much", "some", "little"]
    assert page["streams"][0]["backlogBytes"] > 15_000 and page["next"] is None


async def test_groups_are_counted_over_all_workers_most_streams_first(tmp_path: Path) -> None:
    async with workers(tmp_path) as group:
        for worker in (0, 1):
            for number in range(30):
                group.join(worker, "hoarder", address="10.0.0.7", client="loop.py")
                group.join(worker, f"user{worker}-{number}", address=f"10.1.{worker}.{number}")

        by_user = await group.get("/streams/?group=userId&limit=2")
        by_address = await group.get("/streams/?group=address&limit=1")
        by_client = await group.get("/streams/?group=client&userId=hoarder")
        by_channel = await group.get("/streams/?group=channel")

    assert by_user["groups"][0] == {"userId": "hoarder", "streams": 60, "backlogBytes": 0}
    assert len(by_user["groups"]) == 2 and by_user["isExact"]
    assert by_address["groups"] == [{"address": "10.0.0.7", "streams": 60, "backlogBytes": 0}]
    assert [(one["client"], one["streams"]) for one in by_client["groups"]] == [("loop.py", 60)]
    assert [(one["channel"], one["streams"]) for one in by_channel["groups"]] == [("chat", 120)]


async def test_channels_are_paged_by_name_and_summed_over_workers(tmp_path: Path) -> None:
    async with workers(tmp_path) as group:
        group.join(0, "alex", "chat", "orders.1")
        group.join(1, "kim", "chat", "news")
        group.join(1, "sam", patterns=("orders.*",))

        first = await group.get("/channels/?limit=2")
        second = await group.get(f"/channels/?limit=2&cursor={first['next']}")
        orders = await group.get("/channels/?prefix=orders.")

    chat, news = first["channels"]
    assert chat == {"channel": "chat", "streams": 2, "patternStreams": 0}
    assert news == {"channel": "news", "streams": 1, "patternStreams": 0}
    assert second["channels"] == orders["channels"] == [{"channel": "orders.1", "streams": 1, "patternStreams": 1}]
    assert second["next"] is None


@pytest.mark.parametrize("path", ["/streams/", "/streams/?sort=backlog", "/streams/?group=userId", "/channels/"])
async def test_h3_worker_that_does_not_answer_is_missing_and_the_others_are_there(path: str, tmp_path: Path) -> None:
    async with workers(tmp_path, 2, absent=1) as group:
        group.join(0, "alex")
        group.join(1, "kim")

        found = await group.get(path)

    assert found["missing"] == ["2"]
    rows = found.get("streams") or found.get("groups") or found["channels"]
    assert {row.get("userId", row.get("channel")) for row in rows} <= {"alex", "kim", "chat"} and rows


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
async def test_h4_awkward_names_are_exact(name: str, tmp_path: Path) -> None:
    async with workers(tmp_path) as group:
        group.join(1, name, name, client=name)
        params = {"userId": name, "channel": name}

        response = await group.http.get("/streams/", params=params)
        counted = (await group.http.get("/streams/", params={"group": "channel"})).json()
        channels = (await group.http.get("/channels/", params={"prefix": name})).json()

    (stream,) = json.loads(response.content)["streams"]
    assert (stream["userId"], stream["channels"], stream["client"]) == (name, [name], name[:80])
    assert response.headers["content-type"] == "application/json"
    assert counted["groups"][0]["channel"] == channels["channels"][0]["channel"] == name


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("user=alex", "unknown field 'user': expected userId, channel, address, sort, group, limit, cursor"),
        ("limit=1&limit=2", "limit is given twice: send it once"),
        ("userId=", "userId is empty: it needs 1 to 255 characters"),
        ("channel=a%0Ab", r"channel 'a\nb' contains a line break: remove it"),
        ("limit=0", "limit 0 is not between 1 and 1000"),
        ("limit=1001", "limit 1001 is not between 1 and 1000"),
        ("limit=-1", "limit '-1' is not a whole number"),
        ("cursor=7", "cursor '7' is not the next of an answer, such as 0-1234: leave it out to begin"),
        ("sort=events", "sort 'events' is not one of backlog"),
        ("group=user", "group 'user' is not one of userId, address, channel, pattern, client"),
        ("group=userId&sort=backlog", "sort and group are both given: leave one out"),
        ("sort=backlog&cursor=0-1", "cursor goes with pages only: leave it out together with sort and group"),
        (
            "address=10.0.0.1/8",
            "address '10.0.0.1/8': 10.0.0.1/8 has host bits set: expected an address, a network such as 10.0.0.0/8 or "
            "2001:db8::/64, or unix",
        ),
        (
            "address=example.org",
            "address 'example.org': 'example.org' does not appear to be an IPv4 or IPv6 network: expected an address, "
            "a network such as 10.0.0.0/8 or 2001:db8::/64, or unix",
        ),
    ],
)
async def test_query_that_can_not_be_used_is_refused_with_what_would_do(
    query: str, message: str, tmp_path: Path
) -> None:
    async with workers(tmp_path, 1) as group:
        assert await group.refused(f"/streams/?{query}") == message


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("channel=chat", "unknown field 'channel': expected prefix, limit, cursor"),
        ("limit=x", "limit 'x' is not a whole number"),
        ("prefix=" + "x" * 256, "prefix has 256 characters: at most 255 are allowed"),
    ],
)
async def test_query_for_channels_that_can_not_be_used_is_refused(query: str, message: str, tmp_path: Path) -> None:
    async with workers(tmp_path, 1) as group:
        assert await group.refused(f"/channels/?{query}") == message


@pytest.mark.parametrize(
    ("field", "path"),
    [("streams", "/streams/?limit=1"), ("groups", "/streams/?group=userId"), ("channels", "/channels/")],
)
async def test_answer_has_the_fields_that_the_documentation_shows(field: str, path: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", CONTROL_API.read_text(), re.MULTILINE | re.DOTALL)
    shown = next(value for value in map(json.loads, blocks) if isinstance(value, dict) and field in value)
    async with workers(tmp_path) as group:
        group.join(0, "alex")
        group.join(0, "alex")
        found = await group.get(path)

    assert set(shown) <= set(found)
    assert list(shown[field][0]) == list(found[field][0])
    assert set(shown.get("node", {})) <= set(found["node"])


async def test_channels_whose_streams_no_worker_counts_any_more_are_left_out() -> None:
    async with control_app(board=FadingBoard()) as app:
        found = (await app.http.get("/channels/")).json()

    assert found["channels"] == [] and found["missing"] == ["0"]
