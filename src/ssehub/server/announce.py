"""The log lines of a start: where the hub listens, and a first command to try."""

from __future__ import annotations

import logging
import shlex
from typing import Any

from ..brokers import without_password
from ..config import Config
from .apps import max_streams

logger = logging.getLogger("ssehub.server")

SocketName = str | tuple[Any, ...]
"""What `socket.getsockname` returns: the path of a Unix socket, or host, port and more."""


def announce(config: Config, client: SocketName, control: SocketName) -> None:
    """Log where browsers and publishers connect, the limits, and a curl command to begin with."""
    logger.info("listening for browsers on %s/events/", _url(client))
    announce_control(control)
    streams = config.workers * max_streams(config)
    logger.info("broker %s, at most %d streams", without_password(config.broker), streams)
    logger.info("try: curl %s-d 'userId=alex&channel=chat' %s/token/", *_curl(config, control))


def announce_control(name: SocketName) -> None:
    logger.info("listening for publishers on %s/", _url(name))


def _curl(config: Config, name: SocketName) -> tuple[str, str]:
    """Return the options that curl needs to call the control app on this socket, and the URL."""
    key = '-H "Authorization: Bearer $KEY" ' if config.control_key is not None else ""
    if isinstance(name, str):
        return f"{key}--unix-socket {shlex.quote(name)} ", "http://localhost"
    return key, _url(name)


def _url(name: SocketName) -> str:
    """Return the URL of a socket. For one that listens on every interface, that is its URL on loopback."""
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    if host in ("::", "0.0.0.0"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
