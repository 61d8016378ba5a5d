"""Brokers: the ordered log that carries events to every hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .base import Broker, Deliver, Entry, Limits

__all__ = ["Broker", "Deliver", "Entry", "Limits", "create_broker", "open_log"]

BROKERS = "memory:// or sqlite:///PATH"


def create_broker(url: str, limits: Limits | None = None) -> Broker:
    """The broker that `url` names; imports that one only. Raises ConfigError if there is none."""
    limits = limits or Limits()
    scheme, _, rest = url.partition("://")
    if scheme == "memory" and not rest:
        from .memory import MemoryBroker

        return MemoryBroker(limits)
    if scheme == "sqlite":
        from .sqlite import SqliteBroker

        return SqliteBroker(path_of(url), limits)
    raise ConfigError(f"broker {url.partition('@')[0]!r} is unknown: use {BROKERS}")


@contextmanager
def open_log(url: str) -> Iterator[Iterator[Entry]]:
    """Everything in the log that `url` names, the newest first; a hub may be writing it meanwhile.

    Raises ConfigError where there is nothing to read, BrokerUnavailable.
    """
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
