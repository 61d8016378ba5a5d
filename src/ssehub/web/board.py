"""The board: what the control app asks the hubs of all workers, so that any worker answers for all of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InvalidRequest
from ..fanout.statistics import Statistics
from ..hub import Hub
from ..tokens import Tokens
from .explanation import explain
from .listing import count_groups, list_channels, list_streams
from .process_metrics import measured
from .questions import Question
from .records import trace

STATISTICS = "statistics"
STREAMS = "streams"
GROUPS = "groups"
CHANNELS = "channels"
EXPLAIN = "explain"
TRACE = "trace"
WORKER_AWAY = "worker-away"
WORKER_BACK = "worker-back"
WORKER_STEPS = (WORKER_AWAY, WORKER_BACK)
"""The steps among what is followed that are those of a worker."""
ALONE = "0"
"""The name of the only worker."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The items of each worker that answered, by its name, and the names of those that did not answer in time."""

    by_worker: Mapping[str, list[Any]]
    missing: list[str]


class Board(Protocol):
    """Asks every worker."""

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        """Return what the workers answer to `question`. Raises InvalidRequest for one that is unknown."""

    def follow(self, question: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield what the workers answer to a question without an end, until this one drains.

        Among that is `{"step": "worker-away", "worker": …, "reason": …}` when one of them can't be followed, and
        `worker-back` when it can be again.
        """


class Answerer:
    """Answers the questions of the board for one hub, whose client app has these tokens and `cors_origins`."""

    def __init__(
        self,
        hub: Hub,
        tokens: Tokens,
        cors_origins: Collection[str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._hub = hub
        self._tokens = tokens
        self._cors_origins = None if cors_origins is None else frozenset(cors_origins)
        self._now = now

    async def answer(self, worker: str, question: str, arguments: Mapping[str, Any]) -> list[Any]:
        """Return the items of JSON that `worker`, which has this hub, answers. Raises InvalidRequest."""
        if question == EXPLAIN:
            asked = Question.parse(arguments, self._now())
            return [(await explain(self._hub, self._tokens, asked, self._cors_origins)).to_json()]
        if question not in _ANSWERS:
            raise InvalidRequest(f"unknown question {question!r:.60}: expected {', '.join([*_ANSWERS, EXPLAIN])}")
        return await _ANSWERS[question](self._hub, worker, arguments)

    def follow(self, worker: str, question: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Return the items of JSON that `worker`, which has this hub, answers over time. Raises InvalidRequest."""
        if question != TRACE:
            raise InvalidRequest(f"unknown question without an end {question!r:.60}: expected {TRACE}")
        return trace(self._hub, worker, arguments)


class LocalBoard:
    """The board of a hub that is the only one."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        return Answers({ALONE: await self._answerer.answer(ALONE, question, arguments)}, [])

    def follow(self, question: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        return self._answerer.follow(ALONE, question, arguments)


async def statistics_by_worker(board: Board) -> tuple[dict[str, Statistics], list[str]]:
    """Return the statistics by worker, and the workers that did not answer."""
    answers = await board.ask(STATISTICS, {})
    return {name: Statistics(**items[0]) for name, items in answers.by_worker.items()}, answers.missing


async def _statistics(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> list[Any]:
    return [dataclasses.asdict(await measured(hub))]


_ANSWERS: Mapping[str, Callable[[Hub, str, Mapping[str, Any]], Awaitable[list[Any]]]] = {
    STATISTICS: _statistics,
    STREAMS: list_streams,
    GROUPS: count_groups,
    CHANNELS: list_channels,
}
