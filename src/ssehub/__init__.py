"""A Server-Sent Events hub: backends publish events, browsers receive them at once."""

from .errors import SSEHubError
from .event import Claims, Event
from .hub import Hub

__all__ = ["Claims", "Event", "Hub", "SSEHubError"]
