"""`ssehub revoke`: end access through the control app of a running hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .control import call, control_url_option
from .options import ALIASES, config_option, control_key_file_option, control_key_option, load


@click.command()
@click.option("--jti", help="id of a token")
@click.option("--token", help="a token; - reads it from standard input, where ps does not show it")
@click.option("--sid", help="session at an identity provider")
@click.option("--user-id", *ALIASES["user_id"], "user_id", help="user, by tokens issued until now")
@click.option("--iss", help="issuer of the --sid or --sub")
@click.option("--sub", help="subject of the issuer --iss, by tokens issued until now")
@click.option("--without-sid", is_flag=True, help="only tokens of the --sub that do not belong to a session")
@click.option("--everyone", is_flag=True, help="all tokens issued until now: the answer to a leaked signing key")
@click.option("--issued-before", type=float, metavar="UNIX-TIME", help="a time other than now")
@click.option("--expires-at", type=float, metavar="UNIX-TIME", help="when none of these tokens can be valid any more")
@click.option("--take-back", is_flag=True, help="take the revocation back instead")
@control_url_option
@control_key_option
@control_key_file_option
@config_option
def revoke(
    jti: str | None,
    token: str | None,
    sid: str | None,
    user_id: str | None,
    iss: str | None,
    sub: str | None,
    without_sid: bool,
    everyone: bool,
    issued_before: float | None,
    expires_at: float | None,
    take_back: bool,
    control_url: str,
    config_file: Path | None,
    **settings: object,
) -> None:
    """End the open streams of a token, session, user or subject, or of everyone, and refuse their tokens from now on.

    Prints the position of the command in the log.
    """
    config = load(config_file, settings)
    fields: dict[str, object] = {
        "jti": jti,
        "token": sys.stdin.read().strip() if token == "-" else token,
        "sid": sid,
        "userId": user_id,
        "iss": iss,
        "sub": sub,
        "withoutSid": without_sid or None,
        "everyone": everyone or None,
        "issuedBefore": issued_before,
        "expiresAt": expires_at,
    }
    method = "DELETE" if take_back else "POST"
    answer = call(config, control_url, method, "/revoke/", fields, what="request")
    click.echo(answer["id"])
    if answer.get("durable") is False:
        click.echo("ssehub: the hub forgets this when it stops: its broker is memory://", err=True)
