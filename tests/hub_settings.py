"""Settings of a hub by their names, for tests that set one or two of them."""

from __future__ import annotations

from typing import Any

from ssehub.settings import Backpressure, Retention, Settings, Streams, settings_of

GROUPS: dict[str, type[Settings]] = {"backpressure": Backpressure, "retention": Retention, "streams": Streams}


def hub_settings(**given: Any) -> dict[str, Any]:
    """Return keywords for `Hub`: each setting in its group, and the rest (`now`, `monotonic`) as it is."""
    keywords: dict[str, Any] = {}
    for keyword, group in GROUPS.items():
        names = {setting.name for setting in settings_of(group)}
        keywords[keyword] = group(**{name: given.pop(name) for name in names & given.keys()})
    return keywords | given
