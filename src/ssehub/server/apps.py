"""The composition root: builds the hub and the apps that a `Config` describes, without starting them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from starlette.applications import Starlette
from starlette.routing import Mount

from ..address import LOOPBACK_HOSTS
from ..brokers import create_broker
from ..config import Config
from ..control_keys import ControlKeys
from ..hub import Hub
from ..memory import SHARE, available_bytes
from ..node import Node
from ..platform import raise_descriptor_limit
from ..settings import (
    Backpressure,
    Idempotency,
    Limits,
    LogRetention,
    Memory,
    RedisOptions,
    RequestLimits,
    Retention,
    RunLimits,
    StreamLimits,
    Streams,
)
from ..tokens import Tokens
from ..watched import NOTHING_YET, LastGood
from ..web.board import Answerer, Board
from ..web.client import create_client_app
from ..web.control import create_control_app
from ..web.direct import DirectApp
from .credentials import Credentials, create_credentials

SPARE_DESCRIPTORS = 2_000
"""Descriptors left for publishers, the broker, the log and everything else that the process opens."""
SPARE_CONNECTIONS = (100, 500)
"""Least and most connections beyond the maximum of streams, for clients that are told to come back later. In between it
is a tenth of that maximum.
"""
MIN_CONTROL_CONNECTIONS = 4
OTHER_DESCRIPTORS = 64
"""Descriptors left for the broker, the log and everything else that is no connection, or half of what is left."""


@dataclass(frozen=True, slots=True)
class Apps:
    """A hub and its apps. `combined` is both apps in one, with the control app under `/control/`.

    `combined` always requires a control key. If none is set, no request can pass.
    """

    hub: Hub
    credentials: Credentials
    client: DirectApp
    control: DirectApp
    combined: Starlette
    answerer: Answerer
    """Answers what other workers ask."""


def create_apps(
    config: Config,
    *,
    drains_on_exit: bool,
    board: Board | None = None,
    last_good: LastGood = NOTHING_YET,
    node: Node | None = None,
) -> Apps:
    """Build everything that `config` describes, without starting it. Raises ConfigError.

    `drains_on_exit` makes the client app end its streams when uvicorn is told to exit. `board` is given if the hub
    belongs to one of several workers; `last_good` is what their parent has read last, and `node` what it is.
    """
    credentials = create_credentials(config, last_good)
    tokens, keys = credentials.tokens, credentials.control_keys
    hub = _hub(config, node or node_of(config))
    for certificate in credentials.certificates.all:
        hub.accompany(certificate)
    client = create_client_app(
        hub,
        tokens=tokens,
        token_cookie=config.token_cookie,
        token_cookie_path=config.token_cookie_path,
        token_cookie_secure=config.token_cookie_secure,
        cors_origins=config.cors_origins,
        trusted_proxies=config.trusted_proxies,
        comeback_end=config.comeback_end,
        max_busy_waits=max(1, spare_connections(config) // 2),
        drains_on_exit=drains_on_exit,
    )
    # Without a key the control part of the combined app would be open to the public.
    never_open = keys if keys.is_required else ControlKeys(secrets.token_urlsafe(32))
    behind_key = _control_app(config, hub, tokens, never_open, board)
    combined = Starlette(routes=[Mount("/control", behind_key), Mount("", client)])
    combined.router.redirect_slashes = False
    control = _control_app(config, hub, tokens, keys, board)
    return Apps(hub, credentials, client, control, combined, Answerer(hub, tokens, config.cors_origins))


def node_of(config: Config) -> Node:
    """Return the node that this process is, with what serves its control app."""
    return Node.here(None if config.control_bind is None else str(config.control_bind))


def _hub(config: Config, node: Node) -> Hub:
    return Hub(
        create_broker(
            config.broker,
            idempotency=config.group(Idempotency),
            log=config.group(LogRetention),
            retention=config.group(Retention),
            runs=config.group(RunLimits),
            redis=config.group(RedisOptions),
            node=node,
        ),
        retention=config.group(Retention),
        backpressure=config.group(Backpressure),
        streams=replace(config.group(Streams), max_connections=max_streams(config)),
        memory=replace(config.group(Memory), max_memory_bytes=max_memory_bytes(config)),
        stream_limits=config.group(StreamLimits),
        leeway_seconds=config.leeway_seconds,
    )


def _control_app(
    config: Config,
    hub: Hub,
    tokens: Tokens,
    keys: ControlKeys,
    board: Board | None,
) -> DirectApp:
    return create_control_app(
        hub,
        tokens=tokens,
        control_keys=keys,
        allowed_hosts=_allowed_hosts(config),
        token_lifetime_seconds=config.token_lifetime_seconds,
        limits=config.group(Limits),
        request_limits=config.group(RequestLimits),
        board=board,
        cors_origins=config.cors_origins,
    )


def _allowed_hosts(config: Config) -> list[str]:
    own = config.control_bind.host if config.control_bind is not None else None
    return [*LOOPBACK_HOSTS, *([own] if own else []), *config.control_hosts]


def max_streams(config: Config) -> int:
    """Return how many streams this process serves: the setting, or as many as its descriptor limit allows."""
    if (setting := config.group(Streams).max_connections) is not None:
        return setting
    limit = raise_descriptor_limit()
    return max(limit - SPARE_DESCRIPTORS, limit // 2)


def max_memory_bytes(config: Config) -> int | None:
    """Return the memory that this process may use: the setting, or its share of 80 % of what there is."""
    if (setting := config.group(Memory).max_memory_bytes) is not None:
        return setting
    available = available_bytes()
    return None if available is None else int(available * SHARE) // config.workers


def max_client_connections(config: Config) -> int:
    """Return how many connections the client app accepts: all streams, and some more if descriptors are left."""
    return max_streams(config) + spare_connections(config)


def spare_connections(config: Config) -> int:
    """Return how many connections there may be beyond the maximum of streams."""
    streams = max_streams(config)
    least, most = SPARE_CONNECTIONS
    return max(0, min(max(least, streams // 10), most, (raise_descriptor_limit() - streams) // 2))


def max_control_connections(config: Config) -> int:
    """Return how many connections the control app accepts: the setting, or what everything else leaves."""
    if (setting := config.group(RequestLimits).max_control_connections) is not None:
        return setting
    left = raise_descriptor_limit() - max_client_connections(config)
    return max(MIN_CONTROL_CONNECTIONS, left - min(OTHER_DESCRIPTORS, left // 2))
