"""Brokers: the ordered log that carries events to every hub."""

from __future__ import annotations

from ..errors import ConfigError
from .base import Broker, Deliver, Entry

__all__ = ["Broker", "Deliver", "Entry", "create_broker"]


def create_broker(url: str) -> Broker:
    """The broker that `url` names; imports that one only. Raises ConfigError if there is none."""
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from .memory import MemoryBroker

        return MemoryBroker()
    raise ConfigError(f"broker {scheme!r} is unknown: use memory://")
