"""The composition root: the hub and the apps that a `Config` asks for, made and wired, not started."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from starlette.applications import Starlette
from starlette.routing import Mount

from ..brokers import Limits as BrokerLimits
from ..brokers import create_broker
from ..config import Config
from ..errors import ConfigError
from ..fanout.statistics import Statistics
from ..hub import Hub
from ..settings import (
    Backpressure,
    Idempotency,
    Limits,
    LogRetention,
    RedisOptions,
    Retention,
    Streams,
)
from ..tokens import SHORT_SECRET_BYTES, Tokens, check_secret
from ..web.client import create_client_app
from ..web.control import create_control_app

logger = logging.getLogger("ssehub.apps")

Gather = Callable[[Hub], Awaitable[Mapping[str, Statistics]]]
"""Tells what a worker's hub, and those of the other workers, have done; by worker."""
SPARE_DESCRIPTORS = 500
"""Left for publishers, the log, and whatever else a process opens."""
SPARE_CONNECTIONS = 250
"""On top of the streams, for those that are told to come back later."""


@dataclass(frozen=True, slots=True)
class Apps:
    """One hub and its apps: `combined` is both in one, control under `/control/`, and needs a control key."""

    hub: Hub
    client: Starlette
    control: Starlette
    combined: Starlette


def create_apps(config: Config, *, drains_on_exit: bool, gather: Gather | None = None) -> Apps:
    """Everything that `config` asks for, made but not started. Raises ConfigError.

    `gather` tells the statistics of a group of workers, when the hub is one of them.
    """
    tokens = Tokens(_secret(config), require_exp=config.require_exp)
    key = _control_key(config)
    hub = _hub(config)
    client = create_client_app(
        hub,
        tokens=tokens,
        token_cookie=config.token_cookie,
        cors_origins=config.cors_origins,
        drains_on_exit=drains_on_exit,
    )
    # Whoever mounts the combined app without a key shall find its control part shut.
    statistics = partial(gather, hub) if gather is not None else None
    behind_key = _control_app(config, hub, tokens, key or secrets.token_urlsafe(32), statistics)
    combined = Starlette(routes=[Mount("/control", behind_key), Mount("", client)])
    combined.router.redirect_slashes = False
    return Apps(hub, client, _control_app(config, hub, tokens, key, statistics), combined)


def _hub(config: Config) -> Hub:
    return Hub(
        create_broker(
            config.broker,
            _limits(config),
            redis_prefix=config.group(RedisOptions).redis_prefix,
            wait_for_broker=config.group(RedisOptions).wait_for_broker,
            probe_seconds=config.group(RedisOptions).broker_probe_seconds,
        ),
        retention=config.group(Retention),
        backpressure=config.group(Backpressure),
        streams=replace(config.group(Streams), max_connections=max_connections(config)),
    )


def _limits(config: Config) -> BrokerLimits:
    idempotency, log, retention = config.group(Idempotency), config.group(LogRetention), config.group(Retention)
    return BrokerLimits(
        idempotency_seconds=idempotency.idempotency_seconds,
        idempotency_keys=idempotency.idempotency_keys,
        log_seconds=log.log_seconds,
        log_bytes=log.log_bytes,
        log_events=log.log_events,
        tail_events=retention.history_events,
        tail_bytes=retention.history_bytes,
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


def make_secret() -> str:
    """A secret for this run, and a word about it."""
    logger.warning(
        "no secret is set: one was made for this run, and tokens end with it (set --secret-file or SSEHUB_SECRET)"
    )
    return secrets.token_urlsafe(48)


def _secret(config: Config) -> str:
    if config.secret is None:
        return make_secret()
    secret = config.secret.get_secret_value()
    check_secret(secret)
    if len(secret.encode()) < SHORT_SECRET_BYTES:
        logger.warning("the secret is short: %d bytes or more can't be guessed", SHORT_SECRET_BYTES)
    return secret


def _control_key(config: Config) -> str | None:
    if config.control_key is not None:
        return config.control_key.get_secret_value()
    if config.control_bind is not None and not config.control_bind.is_loopback:
        raise ConfigError(
            f"control_bind {config.control_bind} can be reached from other machines: set a control key "
            "(--control-key-file or SSEHUB_CONTROL_KEY), or bind it to 127.0.0.1"
        )
    return None


def _allowed_hosts(config: Config) -> list[str]:
    own = config.control_bind.host if config.control_bind is not None else None
    return ["localhost", "127.0.0.1", "::1", *([own] if own else []), *config.control_hosts]


def max_connections(config: Config) -> int:
    """How many streams this process takes: what is set, else as many as its descriptors allow for."""
    if (wanted := config.group(Streams).max_connections) is not None:
        return wanted
    limit = _descriptor_limit()
    return max(limit - SPARE_DESCRIPTORS, limit // 2)


def most_connections(config: Config) -> int:
    """How many connections browsers may have: streams, and some on top where descriptors allow for them."""
    streams = max_connections(config)
    return streams + max(0, min(SPARE_CONNECTIONS, (_descriptor_limit() - streams) // 2))


def _descriptor_limit() -> int:
    """The descriptors this process may have, raised as far as it may raise them itself."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 16_384
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (soft, resource.RLIM_INFINITY):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft
