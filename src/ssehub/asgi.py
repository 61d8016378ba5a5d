"""Apps for other servers, configured by environment variables: `uvicorn ssehub.asgi:client_app`.

`client_app` is a complete hub: while it runs, the control app is served beside it on SSEHUB_CONTROL_BIND.
`control_app` is only the control app. `app` is both in one, with the control app under `/control/`.
"""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager, nullcontext

from .config import load_config
from .errors import ConfigError
from .server.apps import create_apps
from .server.embedded import EmbeddedApp, check_certificates, reserving_control_address, running, serving_control

__all__ = ["app", "client_app", "control_app"]

STARTUP_FAILURE = 3
"""uvicorn's supervisor does not restart a worker that exits with this code."""

try:
    _config = load_config({})
    _apps = create_apps(_config, drains_on_exit=True)
except ConfigError as exc:
    sys.stderr.write(f"ssehub: {exc}\n")
    sys.exit(STARTUP_FAILURE)


def _client_lifespan() -> AbstractAsyncContextManager[None]:
    check_certificates(_config, "tls_cert_file")
    return running(_apps.hub, _config, serving_control(_apps, _config))


def _control_lifespan() -> AbstractAsyncContextManager[None]:
    check_certificates(_config, "tls_cert_file", "control_tls_cert_file")
    return running(_apps.hub, _config, nullcontext())


def _combined_lifespan() -> AbstractAsyncContextManager[None]:
    if not _config.requires_control_key:
        raise ConfigError(
            "asgi:app serves control on the public port: set SSEHUB_CONTROL_KEY or SSEHUB_CONTROL_KEYS_FILE, or run "
            "asgi:client_app"
        )
    check_certificates(_config, "tls_cert_file", "control_tls_cert_file")
    return running(_apps.hub, _config, reserving_control_address(_config))


client_app = EmbeddedApp(_apps.client, _client_lifespan)
control_app = EmbeddedApp(_apps.control, _control_lifespan)
app = EmbeddedApp(_apps.combined, _combined_lifespan)
