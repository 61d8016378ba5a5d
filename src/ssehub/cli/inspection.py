"""What is in a token, and whether it is valid: `ssehub token --inspect`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from ..config import Config
from ..errors import KeysUnavailable, TokenError
from .bearer import NO_ACCESS
from .table import printable_json

_TIMES = ("iat", "nbf", "exp")


def show_token(config: Config, token: str) -> int:
    """Print the header and the claims of `token`, never its signature, and if it is valid; return the exit code.

    Raises click.ClickException if it is no token at all.
    """
    from ..tokens.compact import json_object, take_apart

    try:
        parts = take_apart(token)
        claims = json_object("claims", parts.claims)
    except TokenError as exc:
        raise click.ClickException(str(exc)) from exc
    valid, reason = _validity(config, token)
    shown: dict[str, Any] = {
        "header": parts.header.fields,
        "claims": claims,
        "times": _times(claims),
        "valid": valid,
        "reason": reason,
    }
    click.echo(printable_json(shown, indent=2))
    return NO_ACCESS if valid is False else 0


def _validity(config: Config, token: str) -> tuple[bool | None, str]:
    """Return if `token` is valid, None if that can't be told here, and why."""
    from ..server.credentials import tokens_of

    tokens = tokens_of(config)
    if tokens is None:
        return None, "not checked: there is no secret here; give --secret-file or set SSEHUB_SECRET"
    try:
        claims = tokens.verify(token)
    except TokenError as exc:
        return False, str(exc)
    except KeysUnavailable as exc:
        return None, f"not checked: {exc}"
    end = "for ever" if claims.expires_at is None else f"for {claims.expires_at - time.time():.0f} s"
    return True, f"{end}, unless it was revoked: only the hub knows that"


def _times(claims: Mapping[str, Any]) -> dict[str, str]:
    """Return the times among the claims as people read them."""
    found = {}
    for name in _TIMES:
        try:
            found[name] = datetime.fromtimestamp(claims[name], UTC).isoformat(timespec="seconds")
        except (KeyError, TypeError, ValueError, OverflowError, OSError):
            continue
    return found
