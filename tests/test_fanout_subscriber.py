"""The subscriber: its states, and what moves `sent` and the position that the client has as its last event id."""

from __future__ import annotations

from itertools import product

import pytest

from builders import BASE, at, batch, frame, subscriber
from fakes import FakeSink
from ssehub.fanout.frames import HEARTBEAT, Batch
from ssehub.fanout.sinks import Chunk
from ssehub.fanout.subscriber import FAILED, State
from ssehub.position import Position

REPLAYING, LIVE, LAGGING, ENDED = State.REPLAYING, State.LIVE, State.LAGGING, State.ENDED
WATCHING = State.WATCHING
ALLOWED = {
    (REPLAYING, LIVE),
    (REPLAYING, ENDED),
    (LIVE, LAGGING),
    (LIVE, ENDED),
    (LAGGING, LIVE),
    (LAGGING, ENDED),
    (WATCHING, ENDED),
}
CHANGES = list(product(State, State))


class BrokenSink(FakeSink):
    def write(self, chunk: Chunk) -> None:
        raise RuntimeError("the handler is closed")


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=[f"{old.value}-{new.value}" for old, new in CHANGES])
def test_state_changes_only_as_the_table_allows(before: State, after: State) -> None:
    one = subscriber()
    one.state = before

    if (before, after) in ALLOWED:
        one.enter(after)
        assert one.state is after
    else:
        with pytest.raises(AssertionError, match="cannot be followed by"):
            one.enter(after)
        assert one.state is before


@pytest.mark.parametrize(("sent", "state"), [(at(5), LIVE), (at(4), REPLAYING), (BASE, REPLAYING)])
def test_subscriber_begins_to_replay_if_it_begins_before_the_end_of_the_log(sent: Position, state: State) -> None:
    one = subscriber(sent=sent, head=at(5))

    assert one.state is state
    assert (one.sent, one.attached_at) == (sent, at(5))


def test_channels_are_sorted_and_named_once() -> None:
    assert subscriber("alex", "news", "chat", "news").channels == ("chat", "news")


@pytest.mark.parametrize(
    ("sent", "written", "data"),
    [
        pytest.param(BASE, 3, ["1", "2", "3"], id="all-of-it"),
        pytest.param(at(1), 2, ["2", "3"], id="what-is-above-sent"),
        pytest.param(at(3), 0, [], id="nothing"),
        pytest.param(at(9), 0, [], id="nothing-below-sent"),
    ],
)
def test_write_writes_the_part_of_a_batch_that_is_above_sent(sent: Position, written: int, data: list[str]) -> None:
    sink = FakeSink()
    one = subscriber(sink=sink, sent=sent)

    assert one.write(batch(1, 2, 3)) == written
    assert sink.data() == data
    assert one.sent == max(sent, at(3))
    assert one.known_position == (at(3) if written else None)


def test_sent_moves_to_the_end_of_the_round_and_not_of_the_batch() -> None:
    one = subscriber()

    one.write(Batch([frame(1)], at(7)))

    assert (one.sent, one.known_position) == (at(7), at(1))


def test_publishers_id_leaves_the_client_without_a_known_position() -> None:
    one = subscriber()
    one.send(HEARTBEAT, BASE)

    one.write(Batch([frame(1), frame(2, id="mine")], at(2)))

    assert (one.sent, one.known_position) == (at(2), None)


def test_write_that_fails_moves_nothing() -> None:
    one = subscriber(sink=BrokenSink())
    one.known_position = BASE

    assert one.write(batch(1)) == FAILED
    assert one.send(HEARTBEAT, at(1)) is False
    assert (one.sent, one.known_position) == (BASE, BASE)


@pytest.mark.parametrize(
    ("before", "after"), [(REPLAYING, LIVE), (LIVE, LIVE), (LAGGING, LAGGING)], ids=lambda state: state.value
)
def test_start_over_ends_a_replay(before: State, after: State) -> None:
    one = subscriber()
    one.state = before

    one.start_over(at(5))

    assert one.state is after
    assert (one.sent, one.attached_at) == (at(5), at(5))


@pytest.mark.parametrize(
    ("base", "sent"),
    [
        pytest.param(at(9), at(9), id="further-on"),
        pytest.param(at(2), at(5), id="already-sent"),
        pytest.param(Position(1, 0, "otherlog"), Position(1, 0, "otherlog"), id="other-log"),
    ],
)
def test_start_over_repeats_nothing_of_the_same_log(base: Position, sent: Position) -> None:
    one = subscriber(sent=at(5), head=at(5))

    one.start_over(base)

    assert (one.sent, one.attached_at) == (sent, base)
