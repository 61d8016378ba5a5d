"""The command line: one module per command, and `main`, which turns every error into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

import click

from ..errors import AddressError, BrokerUnavailable, SSEHubError
from .bench import bench
from .check import check
from .disconnect import disconnect
from .emit import emit
from .explain import explain
from .flags import double_dashes
from .key import key
from .listen import listen
from .log import log
from .revoke import revoke
from .runs import runs
from .serve import serve
from .streams import channels, statistics, streams
from .token import token
from .trace import trace
from .version import versions

HELP = ["--help", "-h"]
_HINTS = dict.fromkeys(("--port", "-p", "--host"), "--bind HOST:PORT, and --control-bind for the private port")


class _Group(click.Group):
    """Runs `serve` if the arguments do not begin with a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in (*HELP, "--version")):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": HELP, "max_content_width": 100})
@click.version_option(metadata.version("ssehub"), message="ssehub %(version)s")
def ssehub() -> None:
    """A Server-Sent Events hub: backends publish events, browsers receive them at once.

    Without a command, it runs `serve`. Options may be written -bind X, -bind=X, --bind X or --bind=X.
    """


for _command in (
    *(serve, token, emit, listen, explain, trace, streams, channels, statistics),
    *(disconnect, revoke, runs, key, log, check, bench, versions),
):
    ssehub.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command. Exits with 2 for wrong usage, 3 if an address or the log can't be used, 1 for other errors."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = ssehub.main(double_dashes(given, ssehub.commands.values()), prog_name="ssehub", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # keeps the interpreter from reporting the broken pipe once more at exit
        sys.exit(1)
    except click.NoSuchOption as exc:
        hint = _HINTS.get(exc.option_name)
        _fail(f"{exc.format_message()}{f' Use {hint}.' if hint else ''}", exc.exit_code)
    except click.ClickException as exc:
        _fail(exc.format_message(), exc.exit_code)
    except (AddressError, BrokerUnavailable) as exc:
        _fail(str(exc), 3)
    except SSEHubError as exc:
        _fail(str(exc), 2)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"ssehub: {' '.join(message.split())}", err=True)
    sys.exit(code)
