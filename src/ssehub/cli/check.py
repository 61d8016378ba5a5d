"""`ssehub check`: what a hub of these settings would do, without starting it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import SecretStr

from ..config import DEFAULT, OFF, Config, kubernetes_variables, sources_of
from ..errors import BrokerUnavailable, ConfigError, KeysUnavailable
from ..settings import RedisOptions
from ..urls import without_credentials
from .help import command
from .options import config_option, given, load, setting_options

if TYPE_CHECKING:
    from ..tokens import Tokens

UNUSABLE, UNREACHABLE = 2, 3
"""The exit codes, as those of a start."""
_URLS = ("broker", "jwks")
_READ_FROM_FILES = ("control_key",)
"""Settings that have a value without being given, if another one names a file."""


@command()
@setting_options
@config_option
def check(config_file: Path | None, **settings: object) -> int:
    """Show the settings as they count and where each comes from, and check what a start would need.

    That is: secrets, keys and certificates, with their ends; the broker; and the warnings that a start would give. No
    secret is shown, and nothing is changed. The exit code is 0 if a hub can start, 2 if a setting or a file can't be
    used, and 3 if the broker can't be.
    """
    config = load(config_file, settings)
    _show_settings(config, sources_of(given(settings), config_file=config_file))
    findings = _Findings()
    findings.examine("settings", lambda: _start(config))
    findings.examine("secrets and keys of tokens", lambda: _tokens(config))
    findings.examine("control keys", lambda: _control_keys(config))
    findings.examine("certificates", lambda: _certificates(config))
    findings.examine("broker", lambda: _broker(config))
    for name in kubernetes_variables():
        findings.add("ignored", f"{name}, which Kubernetes sets for a Service")
    findings.show()
    return findings.exit_code


class _Findings:
    """What was found, by its title, and the exit code."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._lines: list[tuple[str, str]] = []
        self._warnings: list[str] = []

    def add(self, title: str, text: str) -> None:
        self._lines.append((title, text))

    def examine(self, title: str, look: Callable[[], Iterable[str]]) -> None:
        """Add what `look` finds; a problem that was met before is not added again."""
        with _warnings_of_start() as warnings:
            try:
                for text in look():
                    self.add(title, text)
            except (ConfigError, BrokerUnavailable) as exc:
                code = UNREACHABLE if isinstance(exc, BrokerUnavailable) else UNUSABLE
                self.exit_code = self.exit_code or code
                if ("error", str(exc)) not in self._lines:
                    self.add("error", str(exc))
        self._warnings += [text for text in warnings if text not in self._warnings]

    def show(self) -> None:
        click.echo()
        for title, text in self._lines:
            click.echo(f"{title}: {text}")
        for text in self._warnings:
            click.echo(f"warning: {text}")
        click.echo("a hub can start" if not self.exit_code else "a hub can't start")


def _show_settings(config: Config, sources: dict[str, str]) -> None:
    width = max(map(len, sources))
    for name, source in sources.items():
        click.echo(f"{name:{width}}  {_shown(config, name, source)}  [{source}]")


def _shown(config: Config, name: str, source: str) -> str:
    value: Any = getattr(config, name)
    if name in _READ_FROM_FILES and source == DEFAULT:
        return "not set"
    if isinstance(value, SecretStr):
        return "set, not shown"
    if name == "control_bind" and value is None:
        return OFF
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(value)
    return without_credentials(str(value)) if name in _URLS and "://" in str(value) else str(value)


def _start(config: Config) -> Iterable[str]:
    """Build everything that a start builds, for its errors and its warnings."""
    from ..server.announce import warn_of_plain_http
    from ..server.apps import create_apps, max_streams
    from ..server.process import control_address
    from ..server.workers import check_shared_log

    control_address(config)
    if config.workers > 1:
        check_shared_log(config)
    apps = create_apps(config, drains_on_exit=False)
    warn_of_plain_http(config, apps.credentials.certificates)
    yield f"at most {config.workers * max_streams(config)} streams, in {config.workers} process(es)"


def _tokens(config: Config) -> Iterable[str]:
    from ..server.credentials import tokens_of
    from ..tokens import secrets_of

    tokens = tokens_of(config)
    if tokens is None:
        yield "a random secret, generated at each start"
        return
    if config.secret is not None:
        yield "one secret"
    if (text := tokens.last_good.get("secret_file")) is not None:
        yield f"{len(secrets_of(text))} secret(s) in {config.secret_file}, of which the first signs"
    if config.jwks is not None:
        yield f"keys of {without_credentials(config.jwks)}: {asyncio.run(_provider_keys(tokens))}"


async def _provider_keys(tokens: Tokens) -> str:
    try:
        await tokens.ask_for_keys()
    except KeysUnavailable as exc:
        return f"not available at present: {exc}"
    return "usable" if tokens.problem is None else tokens.problem


def _control_keys(config: Config) -> Iterable[str]:
    from ..key_file import parse_keys
    from ..server.credentials import create_control_keys

    keys = create_control_keys(config)
    if not keys.is_required:
        yield "none: every program on this machine may use the control app"
    if config.control_key is not None:
        yield "control_key, with all rights"
    for entry in parse_keys(keys.last_good["control_keys_file"]) if config.control_keys_file is not None else ():
        yield f"{entry.name}, with the rights {', '.join(sorted(entry.rights))}"


def _certificates(config: Config) -> Iterable[str]:
    from ..server.certificates import create_certificates

    certificates = create_certificates(config).all
    if not certificates:
        yield "none: the ports speak plain HTTP"
    for certificate in certificates:
        names = ", ".join(certificate.names) or "no host name"
        yield f"{certificate.cert_file}, for {names}, ends at {certificate.ends_at:%Y-%m-%d %H:%M} UTC"


def _broker(config: Config) -> Iterable[str]:
    from ..brokers import open_log, path_of, without_password

    shown = without_password(config.broker)
    if config.broker.startswith("memory:"):
        yield f"{shown}: events are lost when the hub stops"
        return
    if config.broker.startswith("sqlite:") and not (path := path_of(config.broker)).exists():
        folder = path.absolute().parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BrokerUnavailable(f"the log {path} can't be created: {folder} can't be written to")
        yield f"{shown}: will be created"
        return
    with open_log(config.broker, config.group(RedisOptions).redis_prefix) as entries:
        newest = next(entries, None)
    yield f"{shown}: reachable, {'empty' if newest is None else f'newest event {newest.position}'}"


@contextlib.contextmanager
def _warnings_of_start() -> Iterator[list[str]]:
    """Collect the warnings that are logged meanwhile, instead of logging them."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            collected.append(record.getMessage())

    logger, collector = logging.getLogger("ssehub"), Collector(logging.WARNING)
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield collected
    finally:
        logger.propagate = True
        logger.removeHandler(collector)
