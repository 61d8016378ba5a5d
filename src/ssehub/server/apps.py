"""The composition root: builds the hub and the apps that a `Config` describes, without starting them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from starlette.applications import Starlette
from starlette.routing import Mount

from ..address import LOOPBACK_HOSTS
from ..brokers import create_broker
from ..config import Config
from ..errors import ConfigError
from ..fanout.statistics import Statistics
from ..hub import Hub
from ..platform import raise_descriptor_limit
from ..settings import (
    Backpressure,
    Idempotency,
    Limits,
    LogRetention,
    RedisOptions,
    RequestLimits,
    Retention,
    StreamLimits,
    Streams,
)
from ..tokens import SHORT_SECRET_BYTES, Tokens, check_secret
from ..web.client import create_client_app
from ..web.control import create_control_app

logger = logging.getLogger("ssehub.apps")

GatherStatistics = Callable[[Hub], Awaitable[Mapping[str, Statistics]]]
"""Returns the statistics of all workers by their names; its argument is the hub of this worker."""
SPARE_DESCRIPTORS = 500
"""Descriptors left for publishers, the broker, the log and everything else that the process opens."""
SPARE_CONNECTIONS = 100
"""Connections beyond the maximum of streams, for clients that are told to come back later."""
MIN_CONTROL_CONNECTIONS = 4
OTHER_DESCRIPTORS = 64
"""Descriptors left for the broker, the log and everything else that is no connection, or half of what is left."""


@dataclass(frozen=True, slots=True)
class Apps:
    """A hub and its apps. `combined` is both apps in one, with the control app under `/control/`.

    `combined` always requires a control key. If none is set, no request can pass.
    """

    hub: Hub
    client: Starlette
    control: Starlette
    combined: Starlette


def create_apps(config: Config, *, drains_on_exit: bool, gather: GatherStatistics | None = None) -> Apps:
    """Build everything that `config` describes, without starting it. Raises ConfigError.

    `drains_on_exit` makes the client app end its streams when uvicorn is told to exit. `gather` is given if the hub
    belongs to one of several workers.
    """
    tokens = Tokens(_secret(config), require_exp=config.require_exp)
    key = _control_key(config)
    hub = _hub(config)
    client = create_client_app(
        hub,
        tokens=tokens,
        token_cookie=config.token_cookie,
        cors_origins=config.cors_origins,
        trusted_proxies=config.trusted_proxies,
        drains_on_exit=drains_on_exit,
    )
    statistics = partial(gather, hub) if gather is not None else None
    # Without a key the control part of the combined app would be open to the public.
    behind_key = _control_app(config, hub, tokens, key or secrets.token_urlsafe(32), statistics)
    combined = Starlette(routes=[Mount("/control", behind_key), Mount("", client)])
    combined.router.redirect_slashes = False
    return Apps(hub, client, _control_app(config, hub, tokens, key, statistics), combined)


def _hub(config: Config) -> Hub:
    return Hub(
        create_broker(
            config.broker,
            idempotency=config.group(Idempotency),
            log=config.group(LogRetention),
            retention=config.group(Retention),
            redis=config.group(RedisOptions),
        ),
        retention=config.group(Retention),
        backpressure=config.group(Backpressure),
        streams=replace(config.group(Streams), max_connections=max_streams(config)),
        stream_limits=config.group(StreamLimits),
    )


def _control_app(
    config: Config,
    hub: Hub,
    tokens: Tokens,
    key: str | None,
    statistics: Callable[[], Awaitable[Mapping[str, Statistics]]] | None,
) -> Starlette:
    return create_control_app(
        hub,
        tokens=tokens,
        control_key=key,
        allowed_hosts=_allowed_hosts(config),
        token_lifetime_seconds=config.token_lifetime_seconds,
        limits=config.group(Limits),
        statistics=statistics,
    )


def random_secret() -> str:
    """Return a secret for this run, and log a warning that it is not kept."""
    logger.warning(
        "no secret is set: a random one is used until this process exits, and its tokens are invalid after that "
        "(set --secret-file or SSEHUB_SECRET)"
    )
    return secrets.token_urlsafe(48)


def _secret(config: Config) -> str:
    if config.secret is None:
        return random_secret()
    secret = config.secret.get_secret_value()
    check_secret(secret)
    if len(secret.encode()) < SHORT_SECRET_BYTES:
        logger.warning("the secret is short and might be guessed: use %d bytes or more", SHORT_SECRET_BYTES)
    return secret


def _control_key(config: Config) -> str | None:
    if config.control_key is not None:
        return config.control_key.get_secret_value()
    if config.control_bind is not None and not config.control_bind.is_loopback:
        raise ConfigError(
            f"control_bind {config.control_bind} accepts connections from other machines: set a control key "
            "(--control-key-file or SSEHUB_CONTROL_KEY), or bind it to 127.0.0.1"
        )
    return None


def _allowed_hosts(config: Config) -> list[str]:
    own = config.control_bind.host if config.control_bind is not None else None
    return [*LOOPBACK_HOSTS, *([own] if own else []), *config.control_hosts]


def max_streams(config: Config) -> int:
    """Return how many streams this process serves: the setting, or as many as its descriptor limit allows."""
    if (setting := config.group(Streams).max_connections) is not None:
        return setting
    limit = raise_descriptor_limit()
    return max(limit - SPARE_DESCRIPTORS, limit // 2)


def max_client_connections(config: Config) -> int:
    """Return how many connections the client app accepts: all streams, and some more if descriptors are left."""
    streams = max_streams(config)
    return streams + max(0, min(SPARE_CONNECTIONS, (raise_descriptor_limit() - streams) // 2))


def max_control_connections(config: Config) -> int:
    """Return how many connections the control app accepts: the setting, or what everything else leaves."""
    if (setting := config.group(RequestLimits).max_control_connections) is not None:
        return setting
    left = raise_descriptor_limit() - max_client_connections(config)
    return max(MIN_CONTROL_CONNECTIONS, left - min(OTHER_DESCRIPTORS, left // 2))
