"""`GET /statistics`: the statistics of all workers as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest
from ..fanout.statistics import ADDED, Statistics
from ..hub import Hub
from ..rights import Right
from .board import Board, statistics_by_worker
from .description import Answer, Description, Named, Schema, list_of, map_of, object_of
from .endpoint import Endpoint
from .forms import JSON
from .nodes import NODES, OPTIONAL_OF_NODES, described
from .requests import ControlRequest
from .schemas import BOOLEAN, COUNT, MISSING, NUMBER, STRING, nullable

_OF_TYPE: Mapping[str, Schema] = {
    "int": COUNT,
    "int | None": nullable(COUNT),
    "float": NUMBER,
    "bool": BOOLEAN,
    "list[int]": list_of(COUNT),
    "tuple[float, ...]": list_of(NUMBER),
    "dict[str, int]": map_of(COUNT),
    "dict[str, float]": map_of(NUMBER),
    "dict[str, bool]": map_of(BOOLEAN),
    "dict[str, str]": map_of(STRING),
    "dict[str, dict[str, int]]": map_of(map_of(COUNT)),
}
"""Schemas by the types of the fields of `Statistics`."""


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _schema(names: Collection[str]) -> Schema:
    return object_of({_camel(one.name): _OF_TYPE[str(one.type)] for one in FIELDS if one.name in names})


FIELDS = dataclasses.fields(Statistics)
GATHERED = Named(
    "GatheredStatistics",
    object_of(
        {
            "version": STRING,
            "total": Named("TotalStatistics", _schema(ADDED)),
            "workers": map_of(Named("Statistics", _schema([one.name for one in FIELDS]))),
            "missing": MISSING,
            **NODES,
        },
        optional=OPTIONAL_OF_NODES,
    ),
)


class GetStatistics(Endpoint):
    """`GET /statistics`."""

    path = "/statistics"
    method = "GET"
    right = Right.READ
    description = Description(
        "getStatistics",
        "Read the statistics of all workers",
        [
            Answer(
                200,
                "The statistics of each worker that has answered, by its name, and sums of what each has of its own.",
                {JSON: GATHERED},
            )
        ],
        refusals=(400,),
    )

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        require_no_query(request)
        return JSONResponse(await gathered(self._hub, self._board), headers={"Cache-Control": "no-store"})


def require_no_query(request: ControlRequest) -> None:
    """Raise InvalidRequest if there is a query."""
    if request.query_string:
        raise InvalidRequest("the query is not used: leave it out")


async def gathered(hub: Hub, board: Board) -> dict[str, Any]:
    """Return the statistics of all workers, with their totals, and the nodes, by the names of the wire."""
    workers, missing = await statistics_by_worker(board)
    return {
        "version": version("ssehub"),
        "total": total(workers.values()),
        "workers": {name: _to_json(statistics) for name, statistics in workers.items()},
        "missing": missing,
        **described(hub),
    }


def total(workers: Collection[Statistics]) -> dict[str, Any]:
    """Return the sums over `workers` of what each has of its own, by the names of the wire."""
    found = workers or [Statistics()]  # if no worker has answered, the sums are 0
    return {_camel(name): _sum([getattr(statistics, name) for statistics in found]) for name in ADDED}


def _sum(values: list[Any]) -> Any:
    """Return the sum of numbers, or the sums of those with the same name or place. It is None if a limit is None."""
    if None in values:
        return None
    if values and isinstance(values[0], dict):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _sum([value[name] for value in values if name in value]) for name in names}
    if values and isinstance(values[0], list):
        return [sum(numbers) for numbers in zip(*values, strict=True)]
    return sum(values)


def _to_json(statistics: Statistics) -> dict[str, Any]:
    return {_camel(name): value for name, value in dataclasses.asdict(statistics).items()}
