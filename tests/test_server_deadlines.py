"""The deadlines of a server's connections: when each is noticed, and how often the server wakes up for that."""

from __future__ import annotations

import pytest

from fakes import ManualLoop
from ssehub.server.deadlines import TICK_SECONDS, Deadlines, Wait

SECONDS = {wait: 60.0 for wait in Wait} | {Wait.HEAD: 10.0, Wait.FLUSH: 5.0}


class Server:
    """Deadlines, and which of them were noticed, with the time."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.expired: list[tuple[str, float]] = []
        self.deadlines: Deadlines[str] = Deadlines(self.loop.as_loop, SECONDS, self._expire)
        self._began = self.loop.now

    def _expire(self, connection: str, wait: Wait) -> None:
        self.expired.append((connection, self.loop.now - self._began))


def test_deadline_is_noticed_by_one_wake_up() -> None:
    server = Server()

    server.deadlines.start("a", Wait.REQUEST)
    server.loop.pass_seconds(200)

    assert server.expired == [("a", 60)]
    assert server.loop.wake_ups == 1


def test_shorter_deadline_that_starts_later_is_noticed_in_time() -> None:
    server = Server()

    server.deadlines.start("a", Wait.REQUEST)
    server.loop.pass_seconds(1)
    server.deadlines.start("b", Wait.HEAD)
    server.loop.pass_seconds(200)

    assert server.expired == [("b", 11), ("a", 60)]


def test_many_deadlines_are_noticed_at_most_twice_a_second() -> None:
    server = Server()

    for number in range(1_000):
        server.deadlines.start(f"{number}", Wait.HEAD)
        server.loop.pass_seconds(0.01)
    server.loop.pass_seconds(20)

    assert [connection for connection, _ in server.expired] == [f"{number}" for number in range(1_000)]
    assert all(0 <= at - 0.01 * int(number) - 10 <= TICK_SECONDS for number, at in server.expired)
    assert server.loop.wake_ups <= 21


def test_requests_in_a_row_hardly_ever_wake_the_server() -> None:
    server = Server()

    for _ in range(1_000):
        server.deadlines.start("a", Wait.HEAD)
        server.deadlines.stop("a", Wait.HEAD)
        server.deadlines.start("a", Wait.REQUEST)
        server.loop.pass_seconds(0.1)
        server.deadlines.stop("a", Wait.REQUEST)
    server.loop.pass_seconds(200)

    assert server.expired == []
    assert server.loop.wake_ups <= 11


def test_deadlines_after_one_whose_expiry_raises_are_noticed() -> None:
    server = Server()

    def expire(connection: str, wait: Wait) -> None:
        server._expire(connection, wait)
        if connection == "a":
            raise RuntimeError("a bug")

    deadlines: Deadlines[str] = Deadlines(server.loop.as_loop, SECONDS, expire)
    deadlines.start("a", Wait.HEAD)
    deadlines.start("b", Wait.REQUEST)
    with pytest.raises(RuntimeError):
        server.loop.pass_seconds(200)
    server.loop.pass_seconds(200)

    assert [connection for connection, _ in server.expired] == ["a", "b"]


def test_deadline_that_is_restarted_begins_anew_behind_the_others() -> None:
    server = Server()

    server.deadlines.start("a", Wait.REQUEST)
    server.deadlines.start("b", Wait.REQUEST)
    server.loop.pass_seconds(30)
    server.deadlines.restart("a", Wait.REQUEST)
    oldest = server.deadlines.oldest(Wait.REQUEST)
    server.loop.pass_seconds(200)

    assert oldest == "b"
    assert server.expired == [("b", 60), ("a", 90)]
