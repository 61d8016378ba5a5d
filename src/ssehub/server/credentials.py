"""The credentials of a process: secrets and keys of tokens, control keys, and certificates."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..config import Config, option_of
from ..control_keys import ControlKeys
from ..credentials import SHORT_SECRET_BYTES, is_short
from ..errors import ConfigError
from ..tokens import Tokens, secrets_of
from ..watched import NOTHING_YET, LastGood
from .certificates import Certificates, create_certificates

logger = logging.getLogger("ssehub.apps")


class Source(Protocol):
    """Something that is read again."""

    @property
    def last_good(self) -> LastGood:
        """The contents that are in use, by setting."""

    async def run(self) -> None:
        """Look for changes until cancelled."""

    async def reload(self) -> None:
        """Read everything now, whether or not it has changed. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials that a `Config` describes."""

    tokens: Tokens
    control_keys: ControlKeys
    certificates: Certificates

    @property
    def _sources(self) -> Sequence[Source]:
        return [self.tokens, self.control_keys, *self.certificates.all]

    @property
    def last_good(self) -> LastGood:
        """The contents that are in use, by setting, for another process."""
        return {name: content for source in self._sources for name, content in source.last_good.items()}

    async def run(self) -> None:
        """Look for changes until cancelled. A process that runs the apps' hub does not need this: the hub does it."""
        async with asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(source.run())

    async def reload(self) -> None:
        """Read everything now. What can't be used is logged, and what was there before stays in use."""
        await asyncio.gather(*[source.reload() for source in self._sources])


def create_credentials(config: Config, last_good: LastGood = NOTHING_YET) -> Credentials:
    """Return what `config` describes; `last_good` is used in place of the files themselves. Raises ConfigError."""
    return Credentials(
        create_tokens(config, last_good), create_control_keys(config, last_good), create_certificates(config, last_good)
    )


def random_secret() -> str:
    """Return a secret for this run, and log a warning that it is not kept."""
    logger.warning(
        "no secret is set: a random one is used until this process exits, and its tokens are invalid after that "
        "(set --secret-file or SSEHUB_SECRET)"
    )
    return secrets.token_urlsafe(48)


def create_tokens(config: Config, last_good: LastGood = NOTHING_YET) -> Tokens:
    """Return the tokens that `config` describes. Raises ConfigError.

    Without a secret and `jwks`, a random secret is used. With `jwks` alone, there is no secret: tokens come from the
    identity provider only.
    """
    given = _secrets(config)
    tokens = _tokens(config, given, last_good)
    text = tokens.last_good.get("secret_file")
    for secret in given if text is None else secrets_of(text):
        _warn_about("secret", secret)
    return tokens


def tokens_of(config: Config) -> Tokens | None:
    """Return what verifies the tokens of `config` without a hub; None if a hub would generate a random secret."""
    if not config.has_secret and config.jwks is None:
        return None
    return _tokens(config, () if config.secret is None else (config.secret.get_secret_value(),), NOTHING_YET)


def _tokens(config: Config, given: Sequence[str], last_good: LastGood) -> Tokens:
    return Tokens(
        given,
        secret_file=config.secret_file,
        jwks=config.jwks,
        issuer=config.issuer,
        audience=config.audience or None,
        user_claim=config.user_claim,
        channel_claim=config.channel_claim,
        grant_templates=config.grant_templates,
        pattern_claim=config.pattern_claim,
        require_exp=config.require_exp,
        leeway_seconds=config.leeway_seconds,
        max_token_seconds=config.max_token_seconds,
        last_good=last_good,
    )


def _secrets(config: Config) -> tuple[str, ...]:
    """Return the secrets that are not in a file."""
    if config.secret is not None:
        return (config.secret.get_secret_value(),)
    return () if config.has_secret or config.jwks is not None else (random_secret(),)


def _warn_about(name: str, value: str) -> None:
    """Warn about a secret or a control key that might be guessed, or that other users of this machine can read."""
    if is_short(value):
        logger.warning("the %s is short and might be guessed: use %d bytes or more", name, SHORT_SECRET_BYTES)
    if any(value in argument for argument in sys.argv):
        option = option_of(f"{name}_file".replace(" ", "_"))
        logger.warning("the %s is on the command line, which every user of this machine can read: use %s", name, option)


def create_control_keys(config: Config, last_good: LastGood = NOTHING_YET) -> ControlKeys:
    """Return the control keys that `config` describes. Raises ConfigError, also if there must be one and is none."""
    if not (config.requires_control_key or config.control_bind is None or config.control_bind.is_loopback):
        raise ConfigError(
            f"control_bind {config.control_bind} accepts connections from other machines: set a control key "
            "(--control-key-file, --control-keys-file or SSEHUB_CONTROL_KEY), or bind it to 127.0.0.1"
        )
    key = config.control_key.get_secret_value() if config.control_key is not None else None
    keys = ControlKeys(key, file=config.control_keys_file, last_good=last_good)
    if key is not None:
        _warn_about("control key", key)
    return keys
