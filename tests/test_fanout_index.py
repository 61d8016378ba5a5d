"""The index: which part of a round is for whom, and that finding it visits no other subscriber."""

from __future__ import annotations

import random

import pytest

from builders import at, frame, subscriber
from hubs import engine_of, join, running_hub
from ssehub.event import Event
from ssehub.fanout.frames import Batch, Frame
from ssehub.fanout.index import Index
from ssehub.fanout.subscriber import Subscriber
from ssehub.position import Position

pytestmark = pytest.mark.anyio

# Several subscribers with the same user and channels are one audience.
MEMBERS = {
    "alex-chat": ("alex", "chat"),
    "alex-chat-again": ("alex", "chat"),
    "alex-news": ("alex", "news"),
    "alex-both": ("alex", "news", "chat"),
    "kim-chat": ("kim", "chat"),
    "kim-both": ("kim", "chat", "news"),
    "star-chat": ("*", "chat"),
}


def index_of(members: dict[str, Subscriber]) -> Index:
    index = Index()
    for member in members.values():
        index.add(member)
    return index


def received(index: Index, members: dict[str, Subscriber], frames: list[Frame]) -> dict[str, list[Position]]:
    """Return the positions that each member receives, in their order. Fail if one receives two batches."""
    names = {member: name for name, member in members.items()}
    found: dict[str, list[Position]] = {}
    for batch, audience in index.select(frames, frames[-1].position):
        assert batch.last == frames[-1].position
        for member in audience:
            assert names[member] not in found, "two batches for one subscriber in one round"
            found[names[member]] = [one.position for one in batch.frames]
    return found


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param(
            [frame(1, "chat")],
            {name: [1] for name in MEMBERS if name != "alex-news"},
            id="everyone-on-a-channel",
        ),
        pytest.param(
            [frame(1, "chat", users=("alex",))],
            {"alex-chat": [1], "alex-chat-again": [1], "alex-both": [1]},
            id="one-user",
        ),
        pytest.param(
            [frame(1, "news"), frame(2, "chat", users=("kim",)), frame(3, "chat", "news", users=("kim", "alex"))],
            {
                "alex-chat": [3],
                "alex-chat-again": [3],
                "alex-news": [1, 3],
                "alex-both": [1, 3],
                "kim-chat": [2, 3],
                "kim-both": [1, 2, 3],
            },
            id="several-channels-and-users",
        ),
        pytest.param([frame(1, "chat", users=("nobody",)), frame(2, "elsewhere")], {}, id="nobody"),
    ],
)
def test_round_is_for_the_subscribers_of_its_channels_and_users(
    frames: list[Frame], expected: dict[str, list[int]]
) -> None:
    members = {name: subscriber(*names) for name, names in MEMBERS.items()}

    found = received(index_of(members), members, frames)

    assert found == {name: [at(number) for number in numbers] for name, numbers in expected.items()}


@pytest.mark.parametrize("seed", range(30))
def test_every_subscriber_receives_exactly_what_is_for_it(seed: int) -> None:
    chance = random.Random(seed)
    channels, users = ["a", "b", "c"], ["alex", "kim", "sam"]
    members = {
        str(number): subscriber(chance.choice(users), *chance.sample(channels, chance.randint(1, 3)))
        for number in range(20)
    }
    frames = [
        frame(
            number,
            *chance.sample(channels, chance.randint(1, 2)),
            users=chance.choice([("*",), ("alex",), ("kim", "sam"), ("*", "kim")]),
        )
        for number in range(1, 15)
    ]

    found = received(index_of(members), members, frames)

    for name, member in members.items():
        assert found.get(name, []) == [
            one.position
            for one in frames
            if set(one.channels) & set(member.channels) and (one.is_for_everyone or member.user_id in one.users)
        ]


@pytest.mark.parametrize(
    ("users", "channels", "named"),
    [
        ((), ("news",), ["alex-both", "alex-news", "kim-both"]),
        (("kim",), (), ["kim-both", "kim-chat"]),
        (("kim",), ("chat",), ["kim-both", "kim-chat"]),
        (("kim", "alex"), ("news", "elsewhere"), ["alex-both", "alex-news", "kim-both"]),
        (("*",), ("chat",), ["star-chat"]),
        (("nobody",), (), []),
        (("kim",), ("elsewhere",), []),
    ],
)
def test_subscribers_are_named_by_user_channel_or_both(
    users: tuple[str, ...], channels: tuple[str, ...], named: list[str]
) -> None:
    members = {name: subscriber(*names) for name, names in MEMBERS.items()}

    found = index_of(members).named(users, channels)

    assert sorted(name for name, member in members.items() if member in found) == named
    assert len(found) == len(named)


@pytest.mark.parametrize(
    ("user", "channel", "most", "count"),
    [
        ("kim", None, 10, 2),
        ("kim", None, 2, None),
        ("kim", "chat", 2, 2),
        ("kim", "chat", 1, None),
        (None, "news", 10, 3),
        (None, "news", 2, None),
        ("nobody", None, 2, 0),
        ("nobody", None, 1, None),
        (None, None, 10, None),
    ],
)
def test_few_are_found_only_if_that_takes_few_steps(
    user: str | None, channel: str | None, most: int, count: int | None
) -> None:
    members = {name: subscriber(*names) for name, names in MEMBERS.items()}

    found = index_of(members).few(user, channel, most)

    assert (None if found is None else len(found)) == count


def test_subscribers_with_the_same_audience_share_one_batch() -> None:
    members = {name: subscriber(*names) for name, names in MEMBERS.items()}

    deliveries = list(index_of(members).select([frame(1, "chat"), frame(2, "chat", users=("alex",))], at(2)))

    assert sorted(len(audience) for _, audience in deliveries) == [1, 1, 2, 2]
    (shared,) = [audience for _, audience in deliveries if members["alex-chat"] in audience]
    assert set(shared) == {members["alex-chat"], members["alex-chat-again"]}


def test_index_is_empty_when_every_subscriber_was_removed() -> None:
    members = {name: subscriber(*names) for name, names in MEMBERS.items()}
    index = index_of(members)

    for member in members.values():
        index.remove(member)

    assert len(index) == 0
    assert index.all == {} and index.channels == {}


async def test_event_for_one_of_a_thousand_users_is_written_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Subscriber] = []
    write = Subscriber.write

    def noting(self: Subscriber, batch: Batch) -> int:
        written.append(self)
        return write(self, batch)

    monkeypatch.setattr(Subscriber, "write", noting)
    async with running_hub() as hub:
        joined = {f"user-{number}": join(hub, f"user-{number}") for number in range(1_000)}
        before = {user: list(sink.chunks) for user, (_, sink) in joined.items()}

        await hub.publish(channel="chat", user_id="user-7", data="hi")
        await hub.flush()

        assert written == [joined["user-7"][0]]
        assert [user for user, (_, sink) in joined.items() if sink.chunks != before[user]] == ["user-7"]


async def test_subscriber_of_two_channels_receives_both_in_log_order_each_event_once() -> None:
    async with running_hub() as hub:
        _, both = join(hub, "alex", "b", "a")
        _, only_a = join(hub, "alex", "a")
        events = [
            Event(("a",), ("*",), data="a1"),
            Event(("b",), ("alex", "kim"), data="b2"),
            Event(("a",), ("kim",), data="not for alex"),
            Event(("a", "b"), ("*", "alex"), data="ab3"),
            Event(("a",), ("alex",), data="a4"),
        ]

        await hub.publish_events(events)
        await hub.flush()

        assert both.data() == ["a1", "b2", "ab3", "a4"]
        assert only_a.data() == ["a1", "ab3", "a4"]
        positions = [position for id in both.ids() if (position := Position.parse(id)) is not None]
        assert len(positions) == len(both.ids()) == 5
        assert positions == sorted(set(positions))


async def test_subscribers_with_the_same_audience_share_one_copy() -> None:
    async with running_hub() as hub:
        sinks = [join(hub, "alex", "a", "b")[1] for _ in range(3)]

        await hub.publish_events([Event((name,), ("*",), data=name) for name in "abab"])
        await hub.flush()

        assert len({id(sink.chunks[-1]) for sink in sinks}) == 1


async def test_nothing_is_left_when_every_subscriber_has_left() -> None:
    async with running_hub() as hub:
        for number in range(100):
            _, sink = join(hub, f"user-{number}", f"channel-{number}", "shared")
            sink.lose()

        engine = engine_of(hub)
        assert engine.index.channels == {} and engine.index.all == {}
        assert len(engine.clock) == 0
        assert hub.statistics.endings["disconnected"] == 100
