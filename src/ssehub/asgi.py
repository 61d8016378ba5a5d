"""The two apps, as the environment configures them.

`uvicorn ssehub.asgi:client_app --http ssehub.server:HttpProtocol`
"""

from __future__ import annotations

from .config import load_config
from .server import create_apps

_config = load_config({}, config_file=None)
_apps = create_apps(_config, key_is_required=not _config.control_bind.is_loopback)

client_app = _apps.client
control_app = _apps.control

__all__ = ["client_app", "control_app"]
