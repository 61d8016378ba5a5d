"""Brokers: the ordered log that carries events to every hub."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from ..node import Node
from ..settings import BROKERS, Idempotency, LogRetention, RedisOptions, Retention, RunLimits, takes_settings
from .base import Broker, Entry, Follower, without_password

__all__ = ["Broker", "Entry", "Follower", "create_broker", "open_log", "without_password"]

REDIS_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel")


@takes_settings
def create_broker(
    url: str,
    *,
    idempotency: Idempotency = Idempotency(),
    log: LogRetention = LogRetention(),
    retention: Retention = Retention(),
    runs: RunLimits = RunLimits(),
    redis: RedisOptions = RedisOptions(),
    node: Node | None = None,
) -> Broker:
    """Create the broker for `url`, importing no other kind.

    `retention` bounds how much of the log's tail a hub reads when it starts. `node` is this process, or the group of
    workers that it belongs to, as others that share the log are told. Raises ConfigError if the scheme is unknown or
    the URL is invalid.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory" and not rest:
        from .memory import MemoryBroker

        return MemoryBroker(idempotency, runs=runs, node=node)
    if scheme == "sqlite":
        from .sqlite import SqliteBroker

        return SqliteBroker(path_of(url), idempotency=idempotency, log=log, retention=retention, runs=runs, node=node)
    if scheme in REDIS_SCHEMES and rest:
        _require_redis()
        from .redis import RedisBroker

        return RedisBroker(
            url, idempotency=idempotency, log=log, retention=retention, runs=runs, options=redis, node=node
        )
    raise ConfigError(f"unknown broker {without_password(url)!r}: use {BROKERS}")


def _require_redis() -> None:
    if importlib.util.find_spec("redis") is None:
        raise ConfigError(
            "the Redis broker needs the package redis, version 8 or newer: "
            f"{sys.executable} -m pip install 'redis[hiredis]'"
        )


@contextmanager
def open_log(url: str, redis_prefix: str = "ssehub") -> Iterator[Iterator[Entry]]:
    """Open the log at `url` for reading and yield its entries, newest first; a hub may write to it meanwhile.

    Raises ConfigError if the broker has no log that can be read, BrokerUnavailable if it cannot be reached.
    """
    if url.partition("://")[0] in REDIS_SCHEMES:
        _require_redis()
        from .redis import open_log as open_redis_log

        with open_redis_log(url, redis_prefix) as entries:
            yield entries
        return
    if not url.startswith("sqlite:"):
        raise ConfigError(f"broker {url!r} has no log that can be read: use one such as sqlite:///events.db")
    from .sqlite import open_log as open_sqlite_log

    with open_sqlite_log(path_of(url)) as entries:
        yield entries


def path_of(url: str) -> Path:
    """Return the path in `sqlite:///PATH`; with four slashes it is absolute. Raises ConfigError if there is none."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise ConfigError(
            f"broker {url!r} does not name a file: write sqlite:///events.db, or sqlite:////var/lib/events.db"
        )
    return Path(path)
