"""Access to the engine of a running hub, for tests that look between two slices of a round, or move the clock."""

from __future__ import annotations

from ssehub.fanout.engine import Engine
from ssehub.hub import Hub


def engine_of(hub: Hub) -> Engine:
    """Return the engine, which `Hub` hides, of a hub that follows its log."""
    engine = hub._engine
    assert engine is not None
    return engine
