"""Options with a single dash, as Go programs write them: `-bind X` means `--bind X`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice

import click

_GO_FLAGS = re.compile(r"-(bind|bindctl|secret|userId|channel|exp|help)(=.*)?", re.DOTALL)


def double_dashes(arguments: Sequence[str], commands: Iterable[click.Command]) -> list[str]:
    """Return `arguments` with a second dash on each single-dash option; the values of options are not changed."""
    with_value = {
        flag
        for command in commands
        for option in command.params
        if isinstance(option, click.Option) and not option.is_flag
        for flag in option.opts
    }
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*result, argument, *rest]
        flag = f"-{argument}" if _GO_FLAGS.fullmatch(argument) else argument
        result += [flag, *islice(rest, 1)] if flag in with_value else [flag]
    return result
