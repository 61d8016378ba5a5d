"""`GET /statistics`: the statistics of all workers as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from importlib.metadata import version
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest
from ..fanout.statistics import Statistics
from ..rights import Right
from .board import Board, statistics_by_worker
from .endpoint import Endpoint
from .requests import ControlRequest

SUMMED = (
    "subscribers",
    "watchers",
    "run_waits",
    "connected",
    "endings",
    "refused",
    "refused_tokens",
    "refused_control",
    "delivered",
    "delivered_bytes",
    "replayed",
    "resets",
    "backlog_bytes",
    "lagging",
    "waiting_bytes",
    "waiting_publishers",
    "memory_bytes",
    "run_producers",
    "refused_appends",
)
"""What each worker has of its own. Workers share the rest, or see the same of it, so that a sum would be wrong."""


class GetStatistics(Endpoint):
    """`GET /statistics`."""

    path = "/statistics"
    method = "GET"
    right = Right.READ

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        if request.query_string:
            raise InvalidRequest("the query is not used: leave it out")
        workers, missing = await statistics_by_worker(self._board)
        content = {
            "version": version("ssehub"),
            "total": total(workers.values()),
            "workers": {name: _to_json(statistics) for name, statistics in workers.items()},
            "missing": missing,
        }
        return JSONResponse(content, headers={"Cache-Control": "no-store"})


def total(workers: Collection[Statistics]) -> dict[str, Any]:
    """Return the sums over `workers` of what each has of its own, by the names of the wire."""
    return {_camel(name): _sum([getattr(statistics, name) for statistics in workers]) for name in SUMMED}


def _sum(values: list[Any]) -> Any:
    if not values or not isinstance(values[0], dict):
        return sum(values)
    counts: Counter[str] = Counter()
    for value in values:
        counts.update(value)
    return dict(counts)


def _to_json(statistics: Statistics) -> dict[str, Any]:
    return {_camel(name): value for name, value in dataclasses.asdict(statistics).items()}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
