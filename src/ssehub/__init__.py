"""A Server-Sent Events hub: backends publish events, browsers receive them at once."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .claims import Claims
    from .control_keys import ControlKeys
    from .errors import SSEHubError
    from .event import Event
    from .hub import Hub
    from .publisher import AsyncPublisher, Publisher
    from .runs.entries import RunEvent
    from .runs.model import RunState
    from .runs.producer import ProducedRun
    from .runs.producing import StartedRun
    from .runs.threads import SyncProducedRun
    from .subscription import Message, Subscription
    from .tokens import Tokens
    from .web.client import create_client_app
    from .web.control import create_control_app

# The module of each public name, imported at first use: a backend that only publishes does not need the server.
_MODULES = {
    "AsyncPublisher": "publisher",
    "Claims": "claims",
    "ControlKeys": "control_keys",
    "Event": "event",
    "Hub": "hub",
    "Message": "subscription",
    "ProducedRun": "runs.producer",
    "Publisher": "publisher",
    "RunEvent": "runs.entries",
    "RunState": "runs.model",
    "SSEHubError": "errors",
    "StartedRun": "runs.producing",
    "Subscription": "subscription",
    "SyncProducedRun": "runs.threads",
    "Tokens": "tokens",
    "create_client_app": "web.client",
    "create_control_app": "web.control",
}

__all__ = [
    "AsyncPublisher",
    "Claims",
    "ControlKeys",
    "Event",
    "Hub",
    "Message",
    "ProducedRun",
    "Publisher",
    "RunEvent",
    "RunState",
    "SSEHubError",
    "StartedRun",
    "Subscription",
    "SyncProducedRun",
    "Tokens",
    "create_client_app",
    "create_control_app",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version(__name__)
    if name not in _MODULES:
        raise AttributeError(f"module 'ssehub' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
