"""ASGI apps for `uvicorn asgi:client_app`, run in the root folder of a checkout."""

from ssehub.asgi import app, client_app, control_app

__all__ = ["app", "client_app", "control_app"]
