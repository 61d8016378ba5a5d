"""Frames and batches: encoded once, cut at a position, and what a client knows after them."""

from __future__ import annotations

import pytest

from builders import BASE, at, batch, frame
from ssehub.event import Event
from ssehub.fanout.frames import HEARTBEAT, Batch, Frame, control_event, hello, most_bytes, reset
from ssehub.position import LAST_NUMBER, Position
from streams import decode


@pytest.mark.parametrize(
    ("position", "rest"), [(BASE, [0, 1, 2]), (at(1), [1, 2]), (at(2), [2]), (at(3), [2]), (at(4), None)]
)
def test_part_of_a_batch_above_a_position(position: Position, rest: list[int] | None) -> None:
    whole = batch(1, 2, 4)

    part = whole.after(position)

    assert (None if part is None else part.frames) == (None if rest is None else [whole.frames[n] for n in rest])
    assert part is None or part.last == whole.last


def test_subscribers_at_the_same_position_share_the_part_of_a_batch() -> None:
    whole = batch(1, 2, 3)

    assert whole.after(BASE) is whole
    assert whole.after(at(1)) is whole.after(at(1))


@pytest.mark.parametrize(
    ("frames", "final"),
    [
        pytest.param([frame(1), frame(2)], at(2), id="position"),
        pytest.param([frame(1), frame(2, id="mine")], None, id="publishers-id"),
        pytest.param([frame(1, id="mine"), frame(2)], at(2), id="position-after-publishers-id"),
        pytest.param([frame(1, payload="id: mine\ndata: 1\n\ndata: 2\n\n")], at(1), id="payload"),
    ],
)
def test_final_position_of_a_batch_is_that_of_its_last_event(frames: list[Frame], final: Position | None) -> None:
    assert Batch(frames, at(9)).final_position == final


@pytest.mark.parametrize(("ttl", "expires_at"), [(None, None), (5, 105.0)])
def test_event_expires_after_its_ttl(ttl: int | None, expires_at: float | None) -> None:
    assert frame(1, arrived_at=100.0, ttl=ttl).expires_at == expires_at


def test_frames_of_the_hub_itself() -> None:
    assert hello(at(1), 1500).data.decode() == f"event: stream-hello\ndata: {{}}\nretry: 1500\nid: {at(1)}\n\n"
    assert hello(None, None).data == b"event: stream-hello\ndata: {}\n\n"
    assert HEARTBEAT.data == b": ping\n"
    (event,) = decode(control_event("stream-drain", {"n": 1}, at(3), 2000).data)
    assert (event.event, event.json(), event.id, event.retry) == ("stream-drain", {"n": 1}, str(at(3)), 2000)


def test_reset_for_datastar_also_patches_its_signals_and_cannot_be_resumed_between_the_two() -> None:
    plain, both = (reset("too-old", at(4), for_datastar=choice).data for choice in (False, True))

    assert both == b'event: datastar-patch-signals\ndata: signals {"stream":{"reset":"too-old"}}\n\n' + plain
    assert plain.decode() == f'event: stream-reset\ndata: {{"reason":"too-old"}}\nid: {at(4)}\n\n'


@pytest.mark.parametrize(
    "event",
    [
        Event(["chat"], ["*"], "\n" * 1_000, "\U0001f600" * 255, "\U0001f600" * 255, 2**31 - 1),
        Event(["chat"], ["*"], "\U0001f600" * 1_000),
        Event(["chat"], ["*"], payload="data: a"),
        Event(["chat"], ["*"], ""),
    ],
    ids=["line breaks", "wide characters", "payload", "empty"],
)
def test_frame_is_not_larger_than_was_estimated_of_its_event(event: Event) -> None:
    frame = Frame(Position(LAST_NUMBER, LAST_NUMBER, "z" * 32), event)

    assert len(frame.data) <= most_bytes(event)
