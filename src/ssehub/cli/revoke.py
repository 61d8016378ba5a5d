"""`ssehub revoke`: end access through the control app of a running hub."""

from __future__ import annotations

import click

from .bearer import given_token
from .help import command, option
from .hub import ControlApp, uses_hub
from .options import user_option


@command()
@option("--jti", help="id of a token")
@option("--token", help="a token (visible in ps: prefer --token-file); - reads it from standard input")
@option("--token-file", metavar="FILE", help="file that contains a token; - reads standard input")
@option("--sid", help="session at an identity provider")
@user_option("user, by tokens issued until now")
@option("--iss", help="issuer of the --sid or --sub")
@option("--sub", help="subject of the issuer --iss, by tokens issued until now")
@option("--without-sid", is_flag=True, help="only tokens of the --sub that do not belong to a session")
@option("--everyone", is_flag=True, help="all tokens issued until now: the answer to a leaked signing key")
@option("--issued-before", type=float, metavar="UNIX-TIME", help="a time other than now")
@option("--expires-at", type=float, metavar="UNIX-TIME", help="when none of these tokens can be valid any more")
@option("--take-back", is_flag=True, help="take the revocation back instead")
@uses_hub
def revoke(
    hub: ControlApp,
    jti: str | None,
    token: str | None,
    token_file: str | None,
    sid: str | None,
    user_id: str | None,
    iss: str | None,
    sub: str | None,
    without_sid: bool,
    everyone: bool,
    issued_before: float | None,
    expires_at: float | None,
    take_back: bool,
) -> None:
    """End the open streams of a token, session, user or subject, or of everyone, and refuse their tokens from now on.

    Prints the position of the command in the log.
    """
    fields: dict[str, object] = {
        "jti": jti,
        "token": given_token(token, token_file),
        "sid": sid,
        "userId": user_id,
        "iss": iss,
        "sub": sub,
        "withoutSid": without_sid or None,
        "everyone": everyone or None,
        "issuedBefore": issued_before,
        "expiresAt": expires_at,
    }
    answer = hub.call("DELETE" if take_back else "POST", "/revoke/", fields, is_repeatable=not take_back)
    click.echo(answer["id"])
    if answer.get("durable") is False:
        click.echo("ssehub: the hub forgets this when it stops: its broker is memory://", err=True)
