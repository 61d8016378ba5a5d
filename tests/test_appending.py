"""An open append, without a server: what it does when the store and its listener do not say the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message

from run_stores import FaultyRuns, data_of, faulty_hub
from ssehub import Hub
from ssehub.runs.model import Run, RunOptions
from ssehub.runs.store import Append, Appended, Creation, Ticket
from ssehub.web.appending import Appending
from ssehub.web.feed import LineFeed
from ssehub.web.open_body import LineLimits, OpenBody
from ssehub.web.rates import PublishRates

pytestmark = pytest.mark.anyio

OPTIONS = RunOptions(("chat",), ("alex",))


class ValidKey:
    is_due = False

    async def repeat(self) -> None:
        raise AssertionError("the keys have not been replaced")


def appending_to(hub: Hub, name: str) -> Appending:
    return Appending(
        hub.runs,
        name,
        Ticket("producer", "connection"),
        generation=None,
        offset=None,
        rates=PublishRates(None),
        key_name="",
        key_check=ValidKey(),
        body=OpenBody(LineLimits(10, 0)),
        count=lambda events: None,
    )


async def copy(appending: Appending, *parts: bytes) -> Appended:
    rest = list(parts)

    async def receive() -> Message:
        return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest)}

    return await appending.copy(receive, LineFeed(2**20, asyncio.Lock()), None)


def give_way(store: FaultyRuns, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let the store take time for each step, and end after `most` of them."""
    append = store.append

    async def append_later(name: str, step: Append) -> Appended:
        assert len(store.steps) < most, "the store is asked again and again"
        await asyncio.sleep(0)
        return await append(name, step)

    monkeypatch.setattr(store, "append", append_later)


@pytest.mark.parametrize("parts", [(b'{"data":"x"}\n',), (b"", b'{"data":"x"}\n'), (b"",)])
async def test_append_goes_on_if_the_store_has_fewer_events_than_it_has_told(
    parts: Sequence[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with faulty_hub() as (hub, store):
        run = (await hub.runs.create("r", Creation(OPTIONS))).run
        appending = appending_to(hub, "r")
        give_way(store, monkeypatch, most=10)
        more = Run(run.name, run.options, run.generation, run.log, run.created_at, events=7)
        appending.advanced(more, 8, [])  # the store has lost them since, or they are those of another generation

        assert (await copy(appending, *parts)).state == "open"
        assert await data_of(hub, "r") == (["x"] if any(parts) else [])
