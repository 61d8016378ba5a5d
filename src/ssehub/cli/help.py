"""`--help` with its options in sections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click

OWN = "Options"
"""The section of what belongs to one command only."""
HUB = "Which hub"
TOKEN = "Token"


class Option(click.Option):
    """An option that `--help` shows in `section`."""

    def __init__(self, *arguments: Any, section: str = OWN, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.section = section


class Command(click.Command):
    """Shows its options in their sections, its own ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {OWN: []}
        last: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                section = getattr(parameter, "section", None)
                (last if section is None else sections.setdefault(section, [])).append(record)
        sections[next(reversed(sections)) if not sections[OWN] else OWN] += last  # --help
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


option = partial(click.option, cls=Option)


def command(name: str | None = None) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command, as `click.command` does."""
    return click.command(name, cls=Command)


def note(variable: str, default: object = None) -> str:
    """Return what follows the text of an option that an environment variable sets, too."""
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"  [env var: {variable}]" if default in (None, []) else f"  [env var: {variable}; default: {shown}]"
