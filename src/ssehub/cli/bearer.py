"""Tokens of commands: where a command is given one, and where it gets one if it is not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import click

from ..config import TOKEN_VARIABLE
from .help import TOKEN, note, option
from .hub import ControlApp
from .options import signing_tokens

token_option = option(
    "--token",
    section=TOKEN,
    help="the token (visible in ps: prefer --token-file); - reads it from standard input",
)
token_file_option = option(
    "--token-file",
    section=TOKEN,
    metavar="FILE",
    help=f"file that contains the token; - reads standard input{note(TOKEN_VARIABLE)}",
)
NO_ACCESS = 4
"""The exit code if a token is not accepted, or not any more."""
NO_TOKEN = f"no token is given: use --token-file, --token - for standard input, or {TOKEN_VARIABLE}"


def given_token(token: str | None, token_file: str | None) -> str | None:
    """Return the token that the options give, None if they give none. Raises click.ClickException."""
    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file are both given: remove one")
    if "-" in (token, token_file):
        return _checked(sys.stdin.read(), "standard input")
    if token is not None:
        click.echo(
            f"ssehub: the token is on the command line, where ps shows it: use --token-file, - or {TOKEN_VARIABLE}",
            err=True,
        )
        return token
    if token_file is None:
        return None
    try:
        with open(token_file, encoding="utf-8") as file:
            return _checked(file.read(), token_file)
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise click.UsageError(f"--token-file {token_file} can't be read: {reason}") from exc


def _checked(text: str, where: str) -> str:
    if not text.strip():
        raise click.UsageError(f"there is no token in {where}")
    return text.strip()


def token_of_environment() -> str | None:
    return os.environ.get(TOKEN_VARIABLE, "").strip() or None


def new_token(
    hub: ControlApp, user_id: str, channels: Sequence[str], patterns: Sequence[str], expires_at: float | None = None
) -> str:
    """Return a token that is signed here if there is a secret, else by the hub.

    If `expires_at` is not given, the setting token_lifetime_seconds says how long it is valid.
    Raises ConfigError, InvalidEvent or click.ClickException.
    """
    tokens = signing_tokens(hub.config)
    if tokens is not None:
        end = time.time() + hub.config.token_lifetime_seconds if expires_at is None else expires_at
        return tokens.issue(user_id, channels, patterns=patterns, expires_at=end)
    fields: dict[str, object] = {
        "userId": user_id,
        "channels": list(channels) or None,
        "patterns": list(patterns) or None,
        "exp": None if expires_at is None else max(1, round(expires_at - time.time())),
    }
    try:
        return str(hub.call("POST", "/token/", fields)["token"])
    except click.ClickException as exc:
        raise click.ClickException(f"there is no secret here to sign a token with, and {exc.message}") from exc
