"""Creating brokers by URL."""

from __future__ import annotations

import pytest

from ssehub.brokers import create_broker
from ssehub.errors import ConfigError


@pytest.mark.parametrize("url", ["", "redis", "foo://", "memory://x", "sqlite://", "sqlite:///", "sqlite://x"])
def test_unknown_broker_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"use memory|does not name a file"):
        create_broker(url)
