"""`ssehub version`: the versions of this program and of what it runs on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

import click

from .help import command

_REDIS = re.compile(r"""extra == ["']redis["']""")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@command("version")
def versions() -> None:
    """Print the versions of ssehub, Python, and the packages that it uses."""
    click.echo(f"ssehub {version('ssehub')}")
    click.echo(f"Python {platform.python_version()} on {platform.platform()}")
    for name in _packages():
        try:
            click.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            click.echo(f"{name} is not installed")


def _packages() -> list[str]:
    """Return what the package itself needs, and what its Redis broker does."""
    wanted = [text for text in requires("ssehub") or [] if "extra ==" not in text or _REDIS.search(text)]
    return sorted({found[0].lower() for text in wanted if (found := _NAME.match(text))})
