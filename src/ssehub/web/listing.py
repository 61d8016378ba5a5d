"""What one hub answers on the board about its streams and channels: plain JSON.

The first item of an answer that may be incomplete says so: `{"more": true}`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest
from ..fanout.listing import Group, Stream
from ..fanout.wanted import Wanted, address_of
from ..fields import check_name
from ..hub import Hub
from ..proxies import UNIX, Network, parse_address, parse_network
from ..timestamps import rfc3339
from .description import Field
from .schemas import NAME, STRING

FILTERS = {
    "userId": Field(NAME, "Only streams of this user."),
    "channel": Field(NAME, "Only streams that hear this channel, also by a pattern."),
    "address": Field(STRING, "Only streams from this IP address or network, or from a Unix socket (`unix`)."),
}
"""The fields of a request that say which streams it is about: those to which all of them apply."""
GROUPS_AT_ONCE = 500
"""So many groups are one item, which is encoded and decoded at once."""


def parse_addresses(text: str) -> Network | str:
    """Return what the field `address` stands for: an address, a network, or `unix`. Raises InvalidRequest."""
    if text == UNIX:
        return UNIX
    address = parse_address(text)
    try:
        return ipaddress.ip_network(address) if address is not None else parse_network(text)
    except ValueError as exc:
        raise InvalidRequest(
            f"address {text[:60]!r}: {str(exc)[:100]}: expected an address, a network such as 10.0.0.0/8 or "
            f"2001:db8::/64, or {UNIX}"
        ) from None


def filters_of(fields: Mapping[str, str]) -> dict[str, str]:
    """Return those of `fields` that say which streams are wanted. Raises InvalidRequest."""
    for name in ("userId", "channel"):
        if name in fields:
            check_name(name, fields[name])
    if "address" in fields:
        parse_addresses(fields["address"])
    return {name: fields[name] for name in FILTERS if name in fields}


async def list_streams(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Answer with a page of streams behind `after`, a worker and a number; or, with `sort`, with the largest ones."""
    listing, wanted, limit = hub.listing, wanted_of(arguments), arguments["limit"]
    if listing is None:
        return [{"more": False}]
    if "sort" in arguments:
        found, has_more = await listing.largest(wanted, limit), False
    else:
        after_worker, after = arguments["after"]
        if int(worker) < after_worker:
            return [{"more": False}]
        found, has_more = await listing.page(wanted, after if int(worker) == after_worker else 0, limit)
    await asyncio.sleep(0)  # finding and describing a thousand takes 5 ms each
    return [{"more": has_more}, *[_row(stream, worker) for stream in found]]


async def count_groups(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Answer with the streams counted `by` what they have in common, as lists of a value, streams and backlog."""
    listing = hub.listing
    if listing is None:
        return [{"more": False}]
    found, has_more = await listing.count(wanted_of(arguments), Group(arguments["by"]))
    parts = [found[at : at + GROUPS_AT_ONCE] for at in range(0, len(found), GROUPS_AT_ONCE)]
    return [{"more": has_more}, *[{"groups": part} for part in parts]]


async def list_channels(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> list[Any]:
    """Answer with the names of channels, in order; or, with `names`, with the streams of these channels."""
    listing = hub.listing
    if "names" in arguments:
        names = arguments["names"]
        return [{"counts": [(0, 0)] * len(names) if listing is None else await listing.channel_counts(names)}]
    if listing is None:
        return [{"names": []}]
    return [{"names": await listing.channels(arguments["prefix"], arguments["after"], arguments["limit"])}]


def wanted_of(arguments: Mapping[str, Any]) -> Wanted:
    """Return which streams a request, or a question on the board, is about. Raises InvalidRequest."""
    address = arguments.get("address")
    return Wanted(
        arguments.get("userId"), arguments.get("channel"), None if address is None else parse_addresses(address)
    )


def _row(stream: Stream, worker: str) -> dict[str, Any]:
    run = {} if stream.run is None else {"run": stream.run}
    return {
        "worker": worker,
        "number": stream.number,
        "userId": stream.user_id,
        "channels": stream.channels,
        "patterns": stream.patterns,
        **run,
        "address": address_of(stream.origin),
        "client": None if stream.origin is None else stream.origin.client,
        "openedAt": rfc3339(stream.opened_at),
        "lastId": stream.last_id,
        "events": stream.events,
        "bytes": stream.bytes,
        "backlogBytes": stream.backlog_bytes,
        "state": stream.state,
    }
