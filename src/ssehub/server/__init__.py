"""The process: uvicorn servers, their sockets, protocol, signals, workers and logs."""

from __future__ import annotations

from .process import HttpProtocol

__all__ = ["HttpProtocol"]
