"""When an open append request sends something, and when it ends."""

from __future__ import annotations

from ssehub.publisher_kept import KeptEvents
from ssehub.publisher_request import MAX_REQUEST_BYTES, SIGN_OF_LIFE, OpenRequest, Rhythm
from ssehub.runs.entries import RunEvent

RHYTHM = Rhythm(renew_seconds=5, life_seconds=15, check_seconds=2)


def test_events_are_sent_as_they_come_and_the_request_ends_after_a_while() -> None:
    kept = KeptEvents()
    request = OpenRequest(kept, RHYTHM, now=100)

    kept.add(RunEvent("one"))
    first = request.next_part(101)
    kept.add(RunEvent("two"))
    second = request.next_part(103)

    assert (first, second) == (b'{"data":"one"}\n', b'{"data":"two"}\n')
    assert request.check_at == 103
    assert request.next_part(103) == b""
    assert (request.wake_at, request.is_over(105.9), request.is_over(106)) == (106, False, True)


def test_silent_request_sends_a_sign_of_life_and_then_asks_whether_it_arrived() -> None:
    request = OpenRequest(KeptEvents(), RHYTHM, now=100)

    assert (request.next_part(114.9), request.wake_at, request.is_over(114.9)) == (b"", 115, False)
    assert request.next_part(115) == SIGN_OF_LIFE
    assert request.next_part(115) == b""
    assert (request.wake_at, request.is_over(119.9), request.is_over(120)) == (120, False, True)
    assert request.check_at == float("inf")


def test_request_begins_behind_what_is_stored_and_ends_when_it_carries_enough() -> None:
    kept = KeptEvents(7)
    for _ in range(600):
        kept.add(RunEvent("x" * 1_000))
    kept.acknowledge(17)
    request = OpenRequest(kept, RHYTHM, now=0)

    part = request.next_part(0)

    assert MAX_REQUEST_BYTES - 2_000 < len(part) <= MAX_REQUEST_BYTES
    assert request.is_over(0)


def test_event_that_is_larger_than_a_request_goes_alone() -> None:
    kept = KeptEvents()
    kept.add(RunEvent("x" * 2 * MAX_REQUEST_BYTES))
    kept.add(RunEvent("y"))
    request = OpenRequest(kept, RHYTHM, now=0)

    assert len(request.next_part(0)) > 2 * MAX_REQUEST_BYTES
    assert request.is_over(0)


def test_run_with_a_short_idle_time_shows_more_signs_of_life() -> None:
    assert RHYTHM.within(60).life_seconds == 15
    assert RHYTHM.within(8) == Rhythm(renew_seconds=2, life_seconds=2, check_seconds=2, short_life_seconds=2)
