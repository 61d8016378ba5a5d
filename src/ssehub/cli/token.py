"""`ssehub token`: sign a token with the secret, without asking a hub."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import click

from ..errors import ConfigError
from ..grant import WILDCARD
from ..settings import Streams
from .options import ALIASES, config_option, load, secret_file_option, secret_option, signing_tokens

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


@click.command()
@click.option(
    "--user-id",
    *ALIASES["user_id"],
    "user_id",
    required=True,
    help="user the token is for; * is an ordinary name here, not everyone",
)
@click.option("--channel", "channels", multiple=True, help="channel the token grants; may be repeated")
@click.option(
    "--pattern", "patterns", multiple=True, help="pattern of channels the token grants, 'orders.*'; may be repeated"
)
@click.option("--exp", type=float, help="when the token expires, as a Unix time")
@click.option(
    "--expires-in", default=None, help="how long the token is valid, such as 3600, 15m, 24h or 7d  [default: 24h]"
)
@secret_option
@secret_file_option
@config_option
def token(
    user_id: str,
    channels: tuple[str, ...],
    patterns: tuple[str, ...],
    exp: float | None,
    expires_in: str | None,
    config_file: Path | None,
    **settings: object,
) -> None:
    """Print a new token, signed here: no hub needs to run."""
    if not channels and not patterns:
        raise click.UsageError("a token needs a channel or a pattern: give --channel or --pattern")
    config = load(config_file, settings)
    if WILDCARD in patterns and not config.group(Streams).allow_all_channels:
        raise click.UsageError(
            "--pattern '*' would be every channel, which hubs do not allow: give a prefix, such as 'orders.*', or set "
            "SSEHUB_ALLOW_ALL_CHANNELS, as for the hub"
        )
    tokens = signing_tokens(config)
    if tokens is None:
        raise ConfigError("no secret to sign the token with: give --secret-file, or set SSEHUB_SECRET")
    expires_at = _expires_at(exp, expires_in)
    click.echo(tokens.issue(user_id, channels, patterns=patterns, expires_at=expires_at))


def _expires_at(exp: float | None, expires_in: str | None) -> float:
    """Return a Unix time. Raises click.UsageError."""
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
    match = _DURATION.fullmatch(expires_in or "24h")
    if match is None or not float(match[1]):
        raise click.UsageError(f"--expires-in {expires_in!r} is not a duration: use e.g. 3600, 15m, 24h or 7d")
    lifetime = float(match[1]) * _UNIT_SECONDS[match[2]]
    if lifetime > MAX_LIFETIME_SECONDS:
        raise click.UsageError(
            f"--expires-in {expires_in!r} is more than ten years: give a duration such as 3600, 15m, 24h or 7d"
        )
    return time.time() + lifetime
