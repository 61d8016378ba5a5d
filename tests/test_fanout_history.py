"""History: what it retains, what a cursor stands for, and that no gap goes unnoticed."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import timeit
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from builders import BASE, LOG, at
from conftest import report
from ssehub.event import Event
from ssehub.fanout.frames import Frame
from ssehub.fanout.history import History, ResetReason
from ssehub.grant import Grant, prefixes_of
from ssehub.position import Position
from ssehub.settings import Retention
from ssehub.testing import ManualClock

SOAK = "SOAK" in os.environ


class FilledHistory(History):
    """A history with short ways to add events to it and to ask it."""

    def __init__(self, *, max_floors: int = 10_000, **bounds: Any) -> None:
        self.clock = ManualClock()
        retention = Retention(**{"history_events": 100, "history_bytes": 10**6, **bounds})
        super().__init__(BASE, retention, max_floors=max_floors)
        self.head = BASE

    @property
    def channel_count(self) -> int:
        return len(self._channels)

    def put(self, *channels: str, users: tuple[str, ...] = ("*",), data: str | None = "x", **fields: Any) -> Position:
        """Add an event at the next position, on `chat` if no channel is named; return the position."""
        self.head = self.head._replace(milliseconds=self.head.milliseconds + 1)
        event = Event(channels or ("chat",), users, data=None if "payload" in fields else data, **fields)
        self.add(Frame(self.head, event, self.clock.monotonic))
        return self.head

    def where(self, cursor: str | Position, *topics: str) -> Position | ResetReason:
        """Locate the cursor of a client with these channels and patterns."""
        channels, prefixes = _split(topics)
        return self.locate(str(cursor), channels, self.head, prefixes)

    def after(self, position: Position, *topics: str, user: str = "alex") -> list[Position]:
        """Return the positions of the events that a client with this position has missed."""
        channels, prefixes = _split(topics)
        frames, _, _ = self.replay(position, channels, user, prefixes, now=self.clock.monotonic)
        return [frame.position for frame in frames]

    def start_of_all(self, *topics: str) -> Position:
        return self.earliest(*_split(topics))

    def start_of(self, count: int, *topics: str, user: str = "alex", max_visits: int = 3) -> Position:
        """Search for the start of the last events for a client, few at a time."""
        channels, prefixes = _split(topics)
        after, missing = self.head, count
        while missing:
            after, missing = self.look_back(
                after, missing, channels, user, prefixes, now=self.clock.monotonic, max_visits=max_visits
            )
        return after

    def after_cursor(self, cursor: str) -> list[Position]:
        found = self.where(cursor)
        assert isinstance(found, Position)
        return self.after(found)


def _split(topics: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the exact channels among `topics`, `chat` if there are none, and the prefixes of the patterns."""
    topics = topics or ("chat",)
    return tuple(name for name in topics if name[-1] != "*"), prefixes_of(name for name in topics if name[-1] == "*")


def test_replay_returns_later_events_in_log_order_each_once() -> None:
    history = FilledHistory()
    first = history.put("chat")
    wanted = [
        history.put("chat"),
        history.put("chat", users=("alex", "kim")),
        history.put("chat", "news"),
        history.put("news"),
    ]
    history.put("chat", users=("kim",))
    history.put("elsewhere")

    assert history.after(first, "chat", "news") == wanted
    assert history.after(first, "chat") == wanted[:3]
    assert history.after(history.head) == []


def test_replay_visits_only_events_that_it_may_return() -> None:
    history = FilledHistory(history_events=10_000)
    start = history.put("chat")
    for number in range(3_000):
        history.put("busy")
        history.put("chat", users=(f"user-{number}",))
    wanted = [history.put("chat"), history.put("chat", users=("alex",))]

    assert history.after(start, "chat") == wanted
    assert history.visited == 2


def test_replay_returns_at_most_max_bytes_but_at_least_one_event() -> None:
    history = FilledHistory()
    positions = [history.put(data="x" * 1_000) for _ in range(5)]

    part = history.replay(BASE, ("chat",), "alex", now=0.0, max_bytes=2_500)
    one = history.replay(BASE, ("chat",), "alex", now=0.0, max_bytes=1)
    rest = history.replay(part.reached, ("chat",), "alex", now=0.0, max_bytes=10_000)

    assert [frame.position for frame in part.frames] == positions[:2]
    assert [frame.position for frame in one.frames] == positions[:1]
    assert [frame.position for frame in rest.frames] == positions[2:]
    assert (part.is_last, one.is_last, rest.is_last) == (False, False, True)


def test_replay_looks_at_no_more_than_max_visits_and_says_how_far_it_got() -> None:
    history = FilledHistory()
    expired = [history.put("chat", "news", ttl=1) for _ in range(5)]
    wanted = history.put("chat", "news")
    for _ in range(60):  # so that the two channels are merged
        history.put("busy")
    history.clock.pass_seconds(2)

    found, after = [], BASE
    reached = []
    for _ in range(3):
        part = history.replay(after, ("chat", "news"), "alex", now=history.clock.monotonic, max_visits=4)
        found += part.frames
        after = part.reached
        reached.append(after)

    assert reached == [expired[1], expired[3], wanted]
    assert [frame.position for frame in found] == [wanted] and part.is_last


@pytest.mark.usefixtures("unhurried_history")
def test_history_expires_in_slices() -> None:
    history = FilledHistory(history_seconds=10)
    for _ in range(5):
        history.put()
    history.clock.pass_seconds(11)

    more = [(history.expire(history.clock.monotonic, 2), len(history)) for _ in range(3)]

    assert more == [(True, 3), (True, 1), (False, 0)]


@pytest.mark.usefixtures("unhurried_history")
@pytest.mark.parametrize("limit", [{"history_events": 3}, {"history_bytes": 6_000}, {"history_seconds": 25.0}])
def test_history_is_bounded_by_count_bytes_and_age(limit: dict[str, Any]) -> None:
    history = FilledHistory(**limit)
    positions = []
    for _ in range(5):
        history.clock.pass_seconds(10)
        positions.append(history.put(data="x" * 1_000))
    history.expire(history.clock.monotonic)

    assert history.after(BASE) == positions[2:]
    assert history.earliest(("chat",)) == positions[1]
    assert history.where(positions[0]) is ResetReason.TOO_OLD
    assert history.where(positions[1]) == positions[1]


@pytest.mark.parametrize(
    ("cursor", "found"),
    [
        (str(at(1)), at(1)),
        (str(BASE), BASE),
        ("999-0." + LOG, ResetReason.TOO_OLD),
        (str(at(50)), ResetReason.LOG_LOST),
        ("1001-0.zzzzzzzz", ResetReason.LOG_LOST),
        ("garbage", ResetReason.UNKNOWN_ID),
        ("-1", ResetReason.UNKNOWN_ID),
        ("\0", ResetReason.UNKNOWN_ID),
        ("1001-0." + LOG + "\r", ResetReason.UNKNOWN_ID),
        pytest.param("x" * 1_000_000, ResetReason.UNKNOWN_ID, id="1-MB"),
    ],
)
def test_cursor_is_located_or_refused_with_a_reason(cursor: str, found: Position | ResetReason) -> None:
    history = FilledHistory()
    history.put()
    history.put()

    assert history.where(cursor) == found


def test_quiet_channel_resumes_although_a_busy_one_evicted_its_events() -> None:
    history = FilledHistory(history_events=10)
    seen, own = history.put("quiet"), history.put("quiet", id="mine")
    before = history.where(seen, "quiet")
    for _ in range(50):
        history.put("busy")

    assert before == seen
    assert history.where(seen, "quiet") is ResetReason.TOO_OLD
    assert history.where(own, "quiet") == own
    assert history.where("mine", "quiet") == own
    assert history.where(own, "quiet", "busy") is ResetReason.TOO_OLD


def test_floors_of_channels_quiet_for_long_merge_into_one() -> None:
    history = FilledHistory(history_events=1, max_floors=2)
    seen = {name: history.put(name) for name in ("a", "b", "c", "d")}
    history.put("e")

    assert history.earliest(("d",)) == seen["d"]
    assert history.where(seen["d"], "d") == seen["d"]
    assert history.earliest(("a",)) == seen["b"] == history.earliest(("unheard-of",))
    assert history.where(seen["a"], "a") is ResetReason.TOO_OLD


def test_publishers_id_is_a_cursor_on_its_channels_only() -> None:
    history = FilledHistory()
    position = history.put("chat", id="42")
    history.put("news", id="7")

    assert history.where("42", "chat") == position
    assert history.where("42", "news") is ResetReason.UNKNOWN_ID
    assert history.where("42", "news", "chat") == position


def test_id_used_twice_stands_for_the_older_use() -> None:
    history = FilledHistory(history_events=5)
    older = history.put(id="1")
    history.put(id="2")
    history.put(id="1")
    assert history.where("1") == older

    for _ in range(3):
        history.put()
    assert history.where("1") == older, "the floor remembers the id"
    history.put()
    assert history.where("1") is ResetReason.UNKNOWN_ID, "it is no longer known which use the client means"
    for _ in range(4):
        history.put()
    newest = history.put(id="1")
    assert history.where("1") == newest


def test_inner_id_of_a_payload_stands_for_the_position_before_it() -> None:
    history = FilledHistory()
    before = history.put()
    whole = history.put(payload="id: a\ndata: 1\n\nid: b\ndata: 2\n\ndata: 3\n\n")
    other = history.put(payload="id: c\ndata: 1\n\nid: d\ndata: 2\n\nid: e\n\n")
    twice = history.put(payload="id: f\ndata: 1\n\nid: f\ndata: 2\n\n")

    inside = history.where("b")
    assert isinstance(inside, Position)
    assert before < inside < whole
    assert history.after(inside)[0] == whole
    assert history.where("d") == history.where("e") == other
    assert history.after_cursor("c")[0] == other
    assert history.after_cursor("f")[0] == twice


def test_event_past_its_ttl_is_neither_replayed_nor_missed() -> None:
    history = FilledHistory(history_events=2)
    start = history.put()
    history.put(ttl=5)
    history.clock.pass_seconds(6)
    assert history.after(start) == []

    wanted = [history.put(), history.put()]
    assert history.where(start) == start
    assert history.after(start) == wanted


def test_start_of_last_counts_the_events_of_the_audience() -> None:
    history = FilledHistory()
    positions = [history.put("chat") for _ in range(5)]
    history.put("chat", users=("kim",))

    start = history.start_of_last(2, ("chat",), "alex", now=0.0)
    assert history.after(start) == positions[-2:]
    assert history.after(history.start_of_last(100, ("chat",), "alex", now=0.0)) == positions
    assert history.start_of_last(3, ("empty",), "alex", now=0.0) == BASE


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 100])
def test_start_of_last_counts_each_event_once_and_none_that_has_expired(count: int) -> None:
    history = FilledHistory()
    positions = []
    for number in range(6):
        positions.append(history.put("chat", "news", users=("alex", "*")[: 1 + number % 2]))
        history.put("chat", ttl=1)
        history.put("news", users=("kim",))
    history.clock.pass_seconds(2)

    start = history.start_of_last(count, ("chat", "news"), "alex", now=history.clock.monotonic)

    assert history.after(start, "chat", "news") == positions[-count:]


def _names(count: int, start: str = "name") -> tuple[str, ...]:
    return tuple(f"{start} {number}" for number in range(count))


def _payload(ids: int, start: str) -> str:
    return "".join(f"id: {start}-{number}\ndata: x\n\n" for number in range(ids))


EVENTS_OF_A_KIND: dict[str, tuple[int, Callable[[int], Event]]] = {
    "small": (2_000, lambda n: Event(("chat",), ("*",), "x")),
    "kilobyte": (1_000, lambda n: Event(("chat",), ("*",), "x" * 1_024)),
    "own-ids": (2_000, lambda n: Event(("chat",), ("*",), "x", id=f"id {n}")),
    "user-each": (2_000, lambda n: Event(("chat",), (f"user {n}",), "x")),
    "channel-each": (2_000, lambda n: Event((f"channel {n}",), ("*",), "x")),
    "many-users": (10, lambda n: Event(("chat",), _names(1_000, f"{n}"), "x")),
    "same-users": (200, lambda n: Event(("chat",), _names(50), "x")),
    "many-channels": (10, lambda n: Event(_names(1_000, f"{n}"), ("*",), "x")),
    "many-channels-with-id": (10, lambda n: Event(_names(1_000, f"{n}"), ("*",), "x", id=f"id {n}")),
    "users-by-channels": (10, lambda n: Event(_names(30, f"c{n}"), _names(30, f"u{n}"), "x")),
    "shared-ids": (2_000, lambda n: Event((f"channel {n}",), ("*",), "x", id=f"id {n // 500}")),
    "ids-on-two-channels": (2_000, lambda n: Event((f"channel {n % 40}", "chat"), ("*",), "x", id=f"id {n}")),
    "payload-ids": (2, lambda n: Event(("chat",), ("*",), payload=_payload(9_000, f"{n}"))),
    "payload-long-ids": (5, lambda n: Event(("chat",), ("*",), payload=_payload(1_000, f"{n}" * 200))),
    "payload-wide-ids": (5, lambda n: Event(("chat",), ("*",), payload=_payload(1_000, f"\U0001f99c{n}" * 30))),
    "payload-on-channels": (5, lambda n: Event(_names(90, f"{n}"), ("*",), payload=_payload(100, f"{n}"))),
    "trailing-ids": (2, lambda n: Event(("chat",), ("*",), payload="data: x\n\n" + f"id: {n}x\n" * 5_000)),
}


@pytest.mark.parametrize(("count", "make"), EVENTS_OF_A_KIND.values(), ids=EVENTS_OF_A_KIND.keys())
def test_d6_bytes_of_the_history_are_the_memory_it_takes(count: int, make: Callable[[int], Event]) -> None:
    history = FilledHistory(history_bytes=2**30, history_events=10_000)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        event = Event.load(make(number).dump())
        history.add(Frame(BASE._replace(milliseconds=BASE.milliseconds + 1 + number), event, 0.0))
    del event
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert history.bytes / 1.5 < used < 1.5 * history.bytes
    while history.expire(3_601):
        pass
    assert history.bytes == 0


@pytest.mark.soak
def test_d6_ids_of_payloads_are_evicted_by_their_bytes() -> None:
    mib = 64 if SOAK else 3
    history = FilledHistory(history_bytes=mib * 2**20, history_events=10_000)
    tracemalloc.start()
    for number in range(2 * mib):
        history.put(payload=_payload(5_000, f"{number}"))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    report(f"{len(history)} payloads of 5,000 ids, {history.bytes >> 20} MiB counted, {used >> 20} MiB used")

    assert len(history) < 1.5 * mib  # 130 kB of text each, but their ids take a megabyte
    assert history.bytes <= mib * 2**20
    assert used < 1.5 * mib * 2**20


@pytest.mark.alone
@pytest.mark.soak
@pytest.mark.parametrize("channels", [1, 100])
def test_last_events_of_a_full_history_are_found_soon(channels: int) -> None:
    history = FilledHistory(history_bytes=10**9, history_events=10_000)
    names = [f"channel-{number}" for number in range(channels)]
    for number in range(10_000):
        history.put(names[number % channels])

    seconds = min(timeit.repeat(lambda: history.start_of_last(999_999_999, names, "alex", now=0.0), number=1))
    most = min(timeit.repeat(lambda: history.start_of_last(9_999, names, "alex", now=0.0), number=1))
    report(f"since=last:999999999 {seconds * 1000:.2f} ms, last:9999 {most * 1000:.2f} ms, {channels} channels")

    assert max(seconds, most) < (0.02 if SOAK else 0.2)


@pytest.mark.usefixtures("unhurried_history")
def test_bytes_balance_if_a_string_grows_while_it_is_retained() -> None:
    history = FilledHistory()
    id = "ä" * 100
    history.put(id=id)

    ctypes.pythonapi.PyUnicode_AsUTF8(ctypes.py_object(id))  # as extensions do: the string caches its UTF-8
    history.shrink(history.bytes, 0)

    assert history.bytes == 0


def test_memory_is_flat_under_many_channels() -> None:
    history = FilledHistory(history_events=1_000, history_bytes=10**7, max_floors=1_000)
    tracemalloc.start()
    sizes = []
    for round in range(3):
        for number in range(3_000):
            history.put(f"channel-{round}-{number}", id=f"{number}")
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()

    assert len(history) == 1_000
    assert max(sizes) < 1.25 * sizes[0]  # dictionaries grow in steps
    assert history.channel_count == 1_000


CHANNELS = ("a", "a.b", "a.bc", "b")
GRANTS: dict[str, tuple[str, ...]] = {
    "channel": ("a",),
    "channels": ("a", "a.b", "b"),
    "pattern": ("a.*",),
    "patterns": ("a.bc*", "b*"),
    "both": ("a.b", "b", "a.bc*"),
    "all": ("*",),
}


@pytest.mark.parametrize("topics", GRANTS.values(), ids=GRANTS.keys())
def test_every_cursor_gets_exactly_the_rest_or_a_reason(topics: tuple[str, ...]) -> None:
    """Whatever a client has seen last, it receives exactly what came after, or a reset."""
    for seed in range(30):
        chance = random.Random(seed)
        history = FilledHistory(history_events=chance.randint(1, 40), max_floors=chance.randint(1, 5))
        grant = Grant(frozenset(_split(topics)[0]), _split(topics)[1])
        sent: list[tuple[Position, str]] = []
        for number in range(chance.randint(1, 120)):
            on = tuple(chance.sample(CHANNELS, chance.randint(1, 2)))
            users = chance.choice([("*",), ("alex",), ("kim",)])
            id = f"id-{number}" if chance.random() < 0.4 else None
            position = history.put(*on, users=users, id=id)
            if any(map(grant.covers, on)) and users != ("kim",):
                sent.append((position, id or str(position)))

        for index, (_, cursor) in enumerate(sent):
            found = history.where(cursor, *topics)
            if isinstance(found, Position):
                assert history.after(found, *topics) == [position for position, _ in sent[index + 1 :]], f"seed {seed}"
            else:
                newest_is_known = index < len(sent) - 1 or len(history) < len(sent)
                assert newest_is_known, f"seed {seed}"
        if sent and sent[-1][0] == history.head:
            assert history.where(sent[-1][1], *topics) == history.head, f"seed {seed}"


@pytest.mark.parametrize("topics", GRANTS.values(), ids=GRANTS.keys())
def test_first_connection_gets_exactly_the_last_events_or_all_that_are_retained(topics: tuple[str, ...]) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        history = FilledHistory(history_events=chance.randint(1, 40))
        grant = Grant(frozenset(_split(topics)[0]), _split(topics)[1])
        retained: list[tuple[Position, bool]] = []
        for _ in range(chance.randint(0, 60)):
            on = tuple(chance.sample(CHANNELS, chance.randint(1, 2)))
            users = chance.choice([("*",), ("alex", "kim"), ("kim",)])
            ttl = chance.choice([None, 1])
            is_mine = any(map(grant.covers, on)) and users != ("kim",) and ttl is None
            retained.append((history.put(*on, users=users, ttl=ttl), is_mine))
        history.clock.pass_seconds(2)
        mine = [position for position, is_mine in retained[-len(history) :] if is_mine] if retained else []

        assert history.after(history.start_of_all(*topics), *topics) == mine, f"seed {seed}"
        for count in (1, 2, 5, 99):
            start = history.start_of(count, *topics, max_visits=chance.randint(1, 9))
            assert history.after(start, *topics) == mine[-count:], f"seed {seed}"


@pytest.mark.parametrize("seed", range(10))
def test_id_stands_for_the_same_by_patterns_as_by_their_channels(seed: int) -> None:
    """Ids are used again and again, on several channels and inside payloads, and are evicted."""
    chance = random.Random(seed)
    history = FilledHistory(history_events=12)
    for _ in range(150):
        on = tuple(chance.sample(CHANNELS, chance.randint(1, 3)))
        id = f"{chance.randrange(6)}"
        if chance.random() < 0.3:
            history.put(*on, payload=f"id: {id}\ndata: 1\n\nid: {chance.randrange(6)}\ndata: 2\n\n")
        else:
            history.put(*on, id=id)

        for cursor in map(str, range(6)):
            assert history.where(cursor, "a*") == history.where(cursor, "a", "a.b", "a.bc")
            assert history.where(cursor, "a.*", "b") == history.where(cursor, "a.b", "a.bc", "b")
            assert history.where(cursor, "nobody.*") is ResetReason.UNKNOWN_ID


def test_id_on_very_many_channels_is_unknown_to_a_pattern_that_matches_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at all of them would take too long; a reset is never wrong."""
    monkeypatch.setattr("ssehub.fanout.history.MAX_CHANNELS_OF_ID", 10)
    history = FilledHistory()
    first = history.put("a.0", id="1")
    for number in range(1, 10):
        history.put(f"a.{number}", id="1")
    tenth = history.put("b.0", id="1")

    assert history.where("1", "a.*") == first
    assert history.where("1", "b.*") is ResetReason.UNKNOWN_ID
    assert history.where("1", "b.*", "a.5") is ResetReason.UNKNOWN_ID
    assert history.where("1", "b.0") == tenth


def test_floor_of_one_channel_of_a_pattern_counts_and_those_of_others_do_not() -> None:
    history = FilledHistory(history_events=10)
    seen = history.put("orders.1")
    for _ in range(10):
        history.put("orders.2")
    own = history.put("orders.1")
    for _ in range(20):
        history.put("busy")

    assert history.where(seen, "orders.*") is ResetReason.TOO_OLD
    assert history.where(own, "orders.*") == own
    assert history.where(own, "orders.*", "busy") is ResetReason.TOO_OLD
    assert history.where(own, "*") is ResetReason.TOO_OLD


def test_merged_floor_counts_for_patterns() -> None:
    """It is not known any more which channels it was about."""
    history = FilledHistory(history_events=1, max_floors=2)
    seen = [history.put(f"channel-{number}") for number in range(5)]

    assert history.where(seen[0], "other*") is ResetReason.TOO_OLD
    assert history.where(seen[2], "other*") == seen[2]


@pytest.mark.parametrize("topics", [("orders.*",), tuple(f"orders.{n}" for n in range(101))], ids=["pattern", "101"])
def test_part_of_a_long_replay_looks_at_a_bounded_number_of_events_and_none_twice(topics: tuple[str, ...]) -> None:
    history = FilledHistory(history_events=20_000, history_bytes=10**9)
    start = history.put("other")
    wanted = [history.put(f"orders.{n // 7 % 101}" if n % 7 == 0 else f"other.{n}") for n in range(10_000)][::7]
    channels, prefixes = _split(topics)

    found, after, parts, is_last = [], start, 0, False
    while not is_last:
        before = history.visited
        frames, after, is_last = history.replay(after, channels, "alex", prefixes, now=0.0, max_visits=1_000)
        found += [frame.position for frame in frames]
        parts += 1
        assert history.visited - before <= 1_000

    assert found == wanted
    assert history.visited == 10_000 and parts == 10


def test_replay_of_several_channels_is_merged_unless_it_takes_longer_than_looking_at_all_events() -> None:
    history = FilledHistory(history_events=10_000, history_bytes=10**9)
    start = history.put("a")
    wanted = [history.put("a"), history.put("b")]
    recent = [history.put("busy") for _ in range(100)]

    assert history.after(recent[60], "a", "b") == []
    assert history.visited == 39, "looked at all"
    assert history.after(start, "a", "b") == wanted
    assert history.visited == 39 + 2, "looked at its own"


@pytest.mark.parametrize("count", [999, 5_000])
def test_history_that_evicts_keeps_no_frame(count: int) -> None:
    history = FilledHistory(history_events=10)
    first = Frame(at(1), Event(("chat",), ("*",), "x"), 0.0)
    references = sys.getrefcount(first)
    history.add(first)
    history.head = at(1)
    for _ in range(count):
        history.put()

    assert sys.getrefcount(first) == references
    assert len(history) == 10
    assert history.after(BASE) == [at(number) for number in range(count - 8, count + 2)]


def test_id_used_twice_is_unknown_once_both_uses_are_evicted() -> None:
    history = FilledHistory(history_events=2)
    for id in ("x", None, "x", None, None):
        history.put(id=id)

    assert history.where("x") is ResetReason.UNKNOWN_ID


def test_id_inside_a_payload_and_at_its_end_is_unknown_once_it_is_evicted() -> None:
    history = FilledHistory(history_events=1)
    history.put(payload="id: x\ndata: 1\n\nid: x\ndata: 2\n\n")
    history.put()

    assert history.where("x") is ResetReason.UNKNOWN_ID
