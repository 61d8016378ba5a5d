"""Grant templates: channels made from the claims of a token, such as `user.{sub}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote

from ..errors import ConfigError, InvalidEvent, TokenError, TokenReason
from ..fields import check_name

_PARTS = re.compile(r"\{([^{}]+)\}")
_SEPARATOR = re.compile(r"[^\w~%-]", re.ASCII)
"""A character that never occurs in an escaped value."""


class GrantTemplate:
    """Text with names of claims in braces. `channel` replaces them by the values in a token.

    In a value, every character except A to Z, a to z, 0 to 9, `-`, `_` and `~` is percent-encoded as UTF-8, and between
    two values stands a character that this encodes. So different values never make the same channel.
    """

    def __init__(self, literals: list[str], claims: list[str]) -> None:
        self._literals = literals
        self._claims = claims

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ConfigError."""
        if not isinstance(text, str):
            raise ConfigError(f"grant_templates: {text!r:.40} is not a string such as 'user.{{sub}}'")
        literals, claims = _PARTS.split(text)[::2], _PARTS.split(text)[1::2]
        plain = "".join(literals)
        if "{" in plain or "}" in plain:
            raise ConfigError(f"grant_templates: {text!r} has an unmatched or empty brace: write 'user.{{sub}}'")
        if "*" in plain:
            raise ConfigError(f"grant_templates: {text!r} contains '*': a template grants exact channels, not patterns")
        if any(_SEPARATOR.search(between) is None for between in literals[1:-1]):
            raise ConfigError(
                f"grant_templates: {text!r} has two claims without a separator between them: put e.g. a dot there, "
                "because with '-' or '_' different values could make the same channel"
            )
        try:
            check_name("grant_templates", text)
        except InvalidEvent as exc:
            raise ConfigError(str(exc)) from exc
        return cls(literals, claims)

    def channel(self, claims: Mapping[str, Any]) -> str:
        """Return the channel for a token with these claims. Raises TokenError."""
        first, *others = self._literals
        return first + "".join(
            _escaped(name, claims.get(name)) + literal for name, literal in zip(self._claims, others, strict=True)
        )


def _escaped(name: str, value: object) -> str:
    if isinstance(value, str) and "*" in value:
        raise TokenError(f"the token's {name} contains '*', so no channel is made from it", TokenReason.CLAIMS)
    try:
        return quote(check_name(name, value), safe="").replace(".", "%2E")
    except InvalidEvent as exc:
        raise TokenError(f"no channel can be made from the token's {name}: {exc}", TokenReason.CLAIMS) from exc
