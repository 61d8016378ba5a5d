"""`ssehub --demo`: a hub for this machine only, with a page that hears its first event."""

from __future__ import annotations

import logging

from ..address import Address
from ..config import Config
from ..errors import ConfigError
from ..web.demo import demo_route
from .announce import SocketName, url_of
from .apps import Apps
from .process import serve

logger = logging.getLogger("ssehub.server")


def serve_demo(config: Config) -> int:
    """Run a hub with the demo page until a signal stops it; return the exit code. Raises as `serve`."""
    require_demo(config)
    return serve(config, add_pages=_add_page)


def require_demo(config: Config) -> None:
    """Raises ConfigError unless these settings suit a page that gives a token to everyone who opens it."""
    if config.workers > 1:
        raise ConfigError(f"--demo runs one process: leave out workers {config.workers}")
    if config.control_bind is None:
        raise ConfigError("--demo needs the control port, to which its curl command sends: control_bind is off")
    _require_loopback("bind", config.bind)
    _require_loopback("control_bind", config.control_bind)
    if config.has_secret or config.jwks is not None:
        raise ConfigError("--demo gives a token to everyone, so it signs with a random secret: leave out your own")
    if config.requires_control_key:
        raise ConfigError("--demo accepts events without a key: leave out the control key")
    if config.tls_cert_file is not None or config.control_tls_cert_file is not None:
        raise ConfigError("--demo speaks plain HTTP on this machine: leave out the certificates")


def _require_loopback(setting: str, address: Address) -> None:
    if address.path is not None or not address.is_loopback:
        raise ConfigError(
            f"--demo is for this machine only: {setting} is {address}, and must be a loopback address, "
            "such as 127.0.0.1:8000"
        )


def _add_page(apps: Apps, client: SocketName, control: SocketName) -> None:
    logger.info("demo: open %s/ in a browser", url_of(client, None))
    # Before the routes of the client app, one of which answers `/` with what is there without the page.
    apps.client.router.routes.insert(0, demo_route(apps.credentials.tokens, url_of(control, None)))
