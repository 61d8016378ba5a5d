"""The process that serves a hub: uvicorn servers, their protocol and sockets, signals, workers and logs."""

from __future__ import annotations

from .protocol import HttpProtocol

__all__ = ["HttpProtocol"]
