"""`ssehub key`: make named control keys, without asking a hub."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from ..key_file import entry_text
from .help import command, option

KEY_BYTES = 32
_OWNER_ONLY = 0o600


@click.group()
def key() -> None:
    """Named control keys, which control_keys_file lists by their hashes."""


@command()
@click.argument("name")
@option("--rights", required=True, metavar="LIST", help="publish, token, disconnect, revoke, read, admin")
@option(
    "--channels",
    metavar="LIST",
    help="channels, and patterns such as orders.*, that it may publish to and issue tokens for  [default: all]",
)
@option(
    "--key-file",
    type=click.Path(path_type=Path),
    help="write the key to this new file, for its owner only, instead of standard error",
)
def new(name: str, rights: str, channels: str | None, key_file: Path | None) -> None:
    """Make a control key called NAME. LIST is separated by commas.

    The entry for control_keys_file goes to standard output, so that `>> control-keys.toml` appends it. The key itself
    goes to standard error, so that it can't get into that file, or to --key-file. It is not kept anywhere else.

    To replace the key of a NAME that is in the file, add the new hash to its sha256 instead: ["OLD", "NEW"].
    """
    made = secrets.token_urlsafe(KEY_BYTES)
    entry = entry_text(name, made, _listed(rights), None if channels is None else _listed(channels))
    if key_file is not None:
        _write(key_file, made)
    click.echo(f"\n{entry}", nl=False)  # the file may not end with a line end
    if key_file is None:
        click.echo(f"ssehub: the key of {name}, which is shown this once: {made}", err=True)


key.add_command(new)


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _write(path: Path, made: str) -> None:
    """Write the key to a new file. Raises click.ClickException."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{made}\n")
    except OSError as exc:
        raise click.ClickException(f"--key-file {path} can't be written: {exc.strerror}") from exc
