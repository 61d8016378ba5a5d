"""`ssehub token`: make a token, or show what is in one."""

from __future__ import annotations

import math
import re
import time

import click

from ..grant import WILDCARD
from ..settings import Streams
from .bearer import NO_TOKEN, given_token, new_token, token_file_option, token_of_environment, token_option
from .help import command, option
from .hub import ControlApp, uses_hub
from .inspection import show_token
from .options import secret_file_option, secret_option, user_option

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


@command()
@user_option("user the token is for; * is an ordinary name here, not everyone")
@option("--channel", "channels", multiple=True, help="channel the token grants; may be repeated")
@option(
    "--pattern", "patterns", multiple=True, help="pattern of channels the token grants, 'orders.*'; may be repeated"
)
@option("--exp", type=float, metavar="UNIX-TIME", help="when the token expires")
@option(
    "--expires-in",
    default=None,
    help="how long the token is valid, such as 3600, 15m, 24h or 7d  [default: token_lifetime_seconds, 24h]",
)
@option("--inspect", is_flag=True, help="show what is in a token that exists, and whether it is valid")
@token_option
@token_file_option
@secret_option
@secret_file_option
@uses_hub
def token(
    hub: ControlApp,
    user_id: str | None,
    channels: tuple[str, ...],
    patterns: tuple[str, ...],
    exp: float | None,
    expires_in: str | None,
    inspect: bool,
    token: str | None,
    token_file: str | None,
) -> int | None:
    """Print a new token. With a secret, it is signed here, and no hub needs to run; else the hub is asked for it.

    With --inspect, print what is in a token instead, as JSON without its signature. With a secret, or the file of
    jwks, that says whether the token is valid; the exit code is 4 if it is not.
    """
    if inspect:
        given = given_token(token, token_file) or token_of_environment()
        if given is None:
            raise click.UsageError(NO_TOKEN)
        return show_token(hub.config, given)
    if token is not None or token_file is not None:
        raise click.UsageError("--token and --token-file are for --inspect: add that")
    if user_id is None:
        raise click.UsageError("Missing option '--user-id'.")
    if not channels and not patterns:
        raise click.UsageError("a token needs a channel or a pattern: give --channel or --pattern")
    if WILDCARD in patterns and hub.config.has_secret and not hub.config.group(Streams).allow_all_channels:
        raise click.UsageError(
            "--pattern '*' would be every channel, which hubs do not allow: give a prefix, such as 'orders.*', or set "
            "SSEHUB_ALLOW_ALL_CHANNELS, as for the hub"
        )
    click.echo(new_token(hub, user_id, channels, patterns, _expires_at(exp, expires_in)))
    return None


def _expires_at(exp: float | None, expires_in: str | None) -> float | None:
    """Return a Unix time, None if neither is given. Raises click.UsageError."""
    from ..tokens import MAX_LIFETIME_SECONDS

    if exp is not None and expires_in is not None:
        raise click.UsageError("--exp and --expires-in are both given: remove one")
    if exp is not None:
        now = time.time()
        if not (math.isfinite(exp) and exp > now):
            raise click.UsageError(f"--exp {exp:g} is not in the future: give a Unix time, now is {int(now)}")
        if exp - now > MAX_LIFETIME_SECONDS:
            raise click.UsageError(
                f"--exp {exp:g} is more than ten years from now: give a Unix time in seconds, now is {int(now)}"
            )
        return exp
    if expires_in is None:
        return None
    match = _DURATION.fullmatch(expires_in)
    if match is None or not float(match[1]):
        raise click.UsageError(f"--expires-in {expires_in!r} is not a duration: use e.g. 3600, 15m, 24h or 7d")
    lifetime = float(match[1]) * _UNIT_SECONDS[match[2]]
    if lifetime > MAX_LIFETIME_SECONDS:
        raise click.UsageError(
            f"--expires-in {expires_in!r} is more than ten years: give a duration such as 3600, 15m, 24h or 7d"
        )
    return time.time() + lifetime
