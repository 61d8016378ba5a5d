"""`GET /streams/` and `GET /channels/`: who is connected, on all workers."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest
from ..fanout.listing import PAGE_CHARACTERS, Group
from ..fanout.subscriber import State
from ..fields import check_name
from ..hub import Hub
from ..pace import Pace
from ..rights import Right
from .board import CHANNELS, GROUPS, STREAMS, Answers, Board
from .description import Answer, Description, Field, Named, any_of, list_of, object_of, queries
from .endpoint import Endpoint
from .forms import JSON, query_fields, whole_number
from .listing import FILTERS, filters_of
from .nodes import NODES, OPTIONAL_OF_NODES, described
from .requests import ControlRequest
from .schemas import BOOLEAN, COUNT, MISSING, NAME, PATTERN, PREFIX, STRING, nullable, one_of, whole_numbers

BACKLOG = "backlog"
MAX_LIMIT = 1_000
DEFAULT_LIMIT = 100
_LIMIT = Field(whole_numbers(1, MAX_LIMIT), f"At most so many; {DEFAULT_LIMIT} if left out.")
FIELDS = {
    **FILTERS,
    "sort": Field(one_of([BACKLOG]), "Those with the largest backlogs, in place of pages."),
    "group": Field(one_of([*Group]), "How many there are by what they have in common, in place of pages."),
    "limit": _LIMIT,
    "cursor": Field({"type": "string", "pattern": "^[0-9]{1,4}-[0-9]{1,15}$"}, "The `next` of the page before."),
}
CHANNEL_FIELDS = {
    "prefix": Field(PREFIX, "Only channels whose names begin like this."),
    "limit": _LIMIT,
    "cursor": Field(PREFIX, "The `next` of the page before."),
}
_STREAM = Named(
    "Stream",
    object_of(
        {
            "worker": STRING,
            "number": {**COUNT, "description": "Counts the streams of the worker."},
            "userId": NAME,
            "channels": list_of(NAME),
            "patterns": list_of(PATTERN),
            "run": {**STRING, "description": "The run that it watches."},
            "address": nullable(STRING),
            "client": nullable(STRING),
            "openedAt": {**STRING, "format": "date-time"},
            "lastId": {**STRING, "description": "The position up to which everything for it has been written."},
            "events": COUNT,
            "bytes": COUNT,
            "backlogBytes": COUNT,
            "state": one_of([state.value for state in State]),
        },
        optional=("run",),
    ),
)
_PAGE = object_of(
    {"streams": list_of(_STREAM), "next": nullable(STRING), "missing": MISSING, **NODES}, OPTIONAL_OF_NODES
)
_GROUPS = object_of(
    {
        "groups": list_of(
            object_of(
                {**{group: nullable(STRING) for group in Group}, "streams": COUNT, "backlogBytes": COUNT},
                optional=[*Group],
            )
        ),
        "isExact": {**BOOLEAN, "description": "False if a worker has more groups than it answers."},
        "missing": MISSING,
        **NODES,
    },
    OPTIONAL_OF_NODES,
)
_CHANNEL = object_of({"channel": NAME, "streams": COUNT, "patternStreams": COUNT})
_CURSOR = re.compile(r"(\d{1,4})-(\d{1,15})", re.ASCII)


class ListStreams(Endpoint):
    """`GET /streams/`: the open streams in pages, those with the largest backlogs, or how many there are by group."""

    path = "/streams/"
    method = "GET"
    right = Right.READ
    description = Description(
        "listStreams",
        "List the open streams of all workers, or count them by group",
        [Answer(200, "A page of them; with `group`, the groups.", {JSON: any_of([_PAGE, _GROUPS])})],
        queries(FIELDS),
        text="`sort` and `group` go neither with each other nor with `cursor`.",
    )

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        fields = query_fields(request.query_string, FIELDS)
        filters, limit = filters_of(fields), _limit(fields)
        sort, group = (_choice(fields, name, known) for name, known in (("sort", (BACKLOG,)), ("group", [*Group])))
        if sort is not None and group is not None:
            raise InvalidRequest("sort and group are both given: leave one out")
        if "cursor" in fields and (sort or group):
            raise InvalidRequest("cursor goes with pages only: leave it out together with sort and group")
        if group is not None:
            found, answers = await self._groups(filters, group, limit)
        elif sort is not None:
            found, answers = await self._largest(filters, limit)
        else:
            found, answers = await self._page(filters, _cursor(fields), limit)
        content = {**found, "missing": answers.missing, **described(self._hub)}
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    async def _page(
        self, filters: Mapping[str, str], after: tuple[int, int], limit: int
    ) -> tuple[dict[str, Any], Answers]:
        answers = await self._board.ask(STREAMS, {**filters, "after": after, "limit": limit})
        rows, has_more = _first(answers, limit)
        cursor = f"{rows[-1]['worker']}-{rows[-1]['number']}" if rows and has_more else None
        return {"streams": rows, "next": cursor}, answers

    async def _largest(self, filters: Mapping[str, str], limit: int) -> tuple[dict[str, Any], Answers]:
        answers = await self._board.ask(STREAMS, {**filters, "sort": BACKLOG, "limit": limit})
        found = heapq.merge(*[items[1:] for items in answers.by_worker.values()], key=_backlog, reverse=True)
        return {"streams": list(_as_many_as_fit(islice(found, limit))), "next": None}, answers

    async def _groups(self, filters: Mapping[str, str], group: str, limit: int) -> tuple[dict[str, Any], Answers]:
        answers = await self._board.ask(GROUPS, {**filters, "by": group})
        counts: dict[str | None, list[int]] = {}
        pace = Pace()
        await pace.rest()
        for items in answers.by_worker.values():
            for part in items[1:]:
                for value, streams, backlog in part["groups"]:
                    count = counts.setdefault(value, [0, 0])
                    count[0] += streams
                    count[1] += backlog
                if pace.is_due:
                    await pace.rest()
        await pace.rest()
        found = heapq.nlargest(limit, counts.items(), key=itemgetter(1))
        rows = [{group: value, "streams": streams, "backlogBytes": backlog} for value, (streams, backlog) in found]
        is_exact = not any([items[0]["more"] for items in answers.by_worker.values()])
        return {"groups": rows, "isExact": is_exact}, answers


class ListChannels(Endpoint):
    """`GET /channels/`: the channels that streams have, by name, with how many streams hear each."""

    path = "/channels/"
    method = "GET"
    right = Right.READ
    description = Description(
        "listChannels",
        "List the channels that streams have, with how many streams hear each",
        [
            Answer(
                200,
                "A page of them, by name.",
                {
                    JSON: object_of(
                        {"channels": list_of(_CHANNEL), "next": nullable(NAME), "missing": MISSING, **NODES},
                        OPTIONAL_OF_NODES,
                    )
                },
            )
        ],
        queries(CHANNEL_FIELDS),
    )

    def __init__(self, hub: Hub, board: Board) -> None:
        super().__init__()
        self._hub = hub
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        fields = query_fields(request.query_string, CHANNEL_FIELDS)
        prefix, after = (check_name(name, fields[name]) if fields.get(name) else "" for name in ("prefix", "cursor"))
        limit = _limit(fields)
        names, has_more, missing = await self._names(prefix, after, limit)
        rows, missing_later = await self._counted(names)
        content = {
            "channels": rows,
            "next": names[-1] if has_more else None,
            "missing": sorted({*missing, *missing_later}, key=int),
            **described(self._hub),
        }
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    async def _names(self, prefix: str, after: str, limit: int) -> tuple[list[str], bool, list[str]]:
        answers = await self._board.ask(CHANNELS, {"prefix": prefix, "after": after, "limit": limit + 1})
        names = sorted({name for (item,) in answers.by_worker.values() for name in item["names"]})
        return names[:limit], len(names) > limit, answers.missing

    async def _counted(self, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Ask all workers for all of `names`: one of them may hear a channel by a pattern only."""
        if not names:
            return [], []
        answers = await self._board.ask(CHANNELS, {"names": names})
        counts = [item["counts"] for (item,) in answers.by_worker.values()]
        rows = []
        for name, *of_workers in zip(names, *counts, strict=True):
            streams, by_pattern = (sum([count[at] for count in of_workers]) for at in (0, 1))
            if streams or by_pattern:  # else they have ended since
                rows.append({"channel": name, "streams": streams, "patternStreams": by_pattern})
        return rows, answers.missing


def _limit(fields: Mapping[str, str]) -> int:
    limit = whole_number("limit")(fields.get("limit", str(DEFAULT_LIMIT)))
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit {limit} is not between 1 and {MAX_LIMIT}")
    return limit


def _choice(fields: Mapping[str, str], name: str, known: Sequence[str]) -> str | None:
    value = fields.get(name)
    if value is not None and value not in known:
        raise InvalidRequest(f"{name} {value[:40]!r} is not one of {', '.join(known)}")
    return value


def _cursor(fields: Mapping[str, str]) -> tuple[int, int]:
    """Return the worker and the number behind which the page begins."""
    cursor = fields.get("cursor", "0-0")
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidRequest(
            f"cursor {cursor[:40]!r} is not the next of an answer, such as 0-1234: leave it out to begin"
        )
    return int(match[1]), int(match[2])


def _first(answers: Answers, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of the page, and True if there are more. It ends where a worker has more than it has answered."""
    rows: list[dict[str, Any]] = []
    characters = 0
    for worker in sorted(answers.by_worker, key=int):
        header, *found = answers.by_worker[worker]
        for row in found:
            if len(rows) == limit or characters >= PAGE_CHARACTERS:
                return rows, True
            rows.append(row)
            characters += _size(row)
        if header["more"]:
            return rows, True
    return rows, False


def _as_many_as_fit(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    characters = 0
    for row in rows:
        if characters >= PAGE_CHARACTERS:
            return
        yield row
        characters += _size(row)


def _size(row: Mapping[str, Any]) -> int:
    return len(row["userId"]) + sum(map(len, row["channels"])) + sum(map(len, row["patterns"]))


_backlog = itemgetter("backlogBytes")
