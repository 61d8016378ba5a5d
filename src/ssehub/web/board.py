"""The board: what the control app asks the hubs of all workers, so that any worker answers for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import InvalidRequest
from ..fanout.statistics import Statistics
from ..hub import Hub
from .listing import count_groups, list_channels, list_streams
from .process_metrics import measured

STATISTICS = "statistics"
STREAMS = "streams"
GROUPS = "groups"
CHANNELS = "channels"
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


class LocalBoard:
    """The board of a hub that is the only one."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        return Answers({ALONE: await answer(self._hub, ALONE, question, arguments)}, [])


async def statistics_by_worker(board: Board) -> tuple[dict[str, Statistics], list[str]]:
    """Return the statistics by worker, and the workers that did not answer."""
    answers = await board.ask(STATISTICS, {})
    return {name: Statistics(**items[0]) for name, items in answers.by_worker.items()}, answers.missing


async def answer(hub: Hub, worker: str, question: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Return the items of JSON that `hub`, which is that of `worker`, answers to `question`. Raises InvalidRequest."""
    if question not in _ANSWERS:
        raise InvalidRequest(f"unknown question {question!r}: expected {', '.join(_ANSWERS)}")
    return await _ANSWERS[question](hub, worker, arguments)


async def _statistics(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> list[Any]:
    return [dataclasses.asdict(await measured(hub))]


_ANSWERS: Mapping[str, Callable[[Hub, str, Mapping[str, Any]], Awaitable[list[Any]]]] = {
    STATISTICS: _statistics,
    STREAMS: list_streams,
    GROUPS: count_groups,
    CHANNELS: list_channels,
}
