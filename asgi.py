"""The apps for `uvicorn asgi:client_app`, run from a checkout."""

from ssehub.asgi import client_app, control_app

__all__ = ["client_app", "control_app"]
