"""Brokers: the ordered log that carries events to every hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .base import (
    Broker,
    Entry,
    Follower,
    Limits,
    without_password,
)

__all__ = ["Broker", "Entry", "Follower", "Limits", "create_broker", "open_log", "without_password"]

BROKERS = "memory://, sqlite:///PATH or redis://HOST:PORT"
REDIS_SCHEMES = ("redis", "rediss", "redis+unix", "redis+sentinel")


def create_broker(
    url: str,
    limits: Limits | None = None,
    *,
    redis_prefix: str = "ssehub",
    wait_for_broker: bool = False,
    probe_seconds: float = 5.0,
) -> Broker:
    """The broker that `url` names; imports that one only.

    `redis_prefix` keeps deployments apart that share a Redis; with `wait_for_broker` one starts that can't connect yet;
    `probe_seconds` is how long a connection to it may be silent. Raises ConfigError if there is no such broker.
    """
    limits = limits or Limits()
    scheme, _, rest = url.partition("://")
    if scheme == "memory" and not rest:
        from .memory import MemoryBroker

        return MemoryBroker(limits)
    if scheme == "sqlite":
        from .sqlite import SqliteBroker

        return SqliteBroker(path_of(url), limits)
    if scheme in REDIS_SCHEMES and rest:
        _need_redis()
        from .redis import RedisBroker

        return RedisBroker(url, limits, prefix=redis_prefix, waits=wait_for_broker, probe_seconds=probe_seconds)
    raise ConfigError(f"broker {scheme!r} is unknown: use {BROKERS}")


def _need_redis() -> None:
    if importlib.util.find_spec("redis") is None:
        raise ConfigError("the Redis broker needs redis: pip install 'ssehub[redis]'")


@contextmanager
def open_log(url: str, redis_prefix: str = "ssehub") -> Iterator[Iterator[Entry]]:
    """Everything in the log that `url` names, the newest first; a hub may be writing it meanwhile.

    Raises ConfigError where there is nothing to read, BrokerUnavailable.
    """
    if url.partition("://")[0] in REDIS_SCHEMES:
        _need_redis()
        from .redis import open_log as open_redis_log

        with open_redis_log(url, redis_prefix) as entries:
            yield entries
        return
    if not url.startswith("sqlite:"):
        raise ConfigError(f"broker {url!r} keeps no log that can be read: name one such as sqlite:///events.db")
    from .sqlite import LogFile

    file = LogFile.open_to_read(path_of(url))
    try:
        yield file.backwards()
    finally:
        file.close()


def path_of(url: str) -> Path:
    """The file of `sqlite:///PATH`; with four slashes the path is absolute."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise ConfigError(f"broker {url!r} names no file: write sqlite:///events.db, or sqlite:////var/lib/events.db")
    return Path(path)
