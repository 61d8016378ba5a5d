"""A JSON Web Key Set (RFC 7517, 5): the public keys that verify the tokens of an identity provider."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ..errors import ConfigError, UnknownKey
from .keys import PublicKey, UnusableKey

MAX_KEYS = 100
MAX_KEY_SET_BYTES = 2**20
_SECRET_MEMBERS = ("d", "p", "q", "dp", "dq", "qi", "oth", "priv", "k")
"""Parameters of private and symmetric keys (RFC 7518, 6.2.2, 6.3.2 and 6.4; RFC 8037, 2; AKP)."""

logger = logging.getLogger("ssehub.tokens")


class KeySet:
    """Public keys by key id and algorithm. It does not change."""

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        pairs = [(key.kid, algorithm) for key in keys for algorithm in key.algorithms]
        counts = Counter(pairs)
        for (kid, algorithm), count in counts.items():
            if count > 1:
                logger.warning(
                    "JWKS: %d keys have kid %.80r and alg %s, so none of them is used for it", count, kid, algorithm
                )
        self._keys = {
            (key.kid, algorithm): key for key in keys for algorithm in key.algorithms if counts[key.kid, algorithm] == 1
        }
        by_algorithm = Counter(algorithm for _, algorithm in self._keys)
        self._only = {algorithm: key for (_, algorithm), key in self._keys.items() if by_algorithm[algorithm] == 1}

    def __len__(self) -> int:
        """Return the number of pairs of a key id and an algorithm."""
        return len(self._keys)

    @classmethod
    def parse(cls, content: bytes | Mapping[str, Any]) -> Self:
        """Return the usable keys of a JWKS, as JSON in UTF-8 or parsed.

        A key that can't be used is skipped with a line in the log. Raises ConfigError, in one line, if none is left, or
        if the whole set is refused: it is too large, not a JWKS, or has a private or symmetric key in it, which means
        that a secret has been published.
        """
        values = _key_list(content)
        keys = []
        for number, value in enumerate(values, 1):
            try:
                keys.append(PublicKey.from_jwk(value))
            except UnusableKey as exc:
                logger.warning("JWKS: key %d (kid %.80r) is skipped: %s", number, value.get("kid"), exc)
        key_set = cls(keys)
        if not key_set:
            raise ConfigError(f"the JWKS has no key that can verify tokens: {len(values)} given, none is usable")
        return key_set

    def find(self, kid: str | None, algorithm: str) -> PublicKey:
        """Return the key with this `kid` and `algorithm`; without `kid`, the only key for `algorithm`.

        Raises UnknownKey.
        """
        key = self._only.get(algorithm) if kid is None else self._keys.get((kid, algorithm))
        if key is None:
            which = "no kid, and not exactly one key fits" if kid is None else f"kid {kid[:80]!r}, and no key has it"
            raise UnknownKey(f"the token has {which} for {algorithm[:20]!r}")
        return key


def _key_list(content: bytes | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects in `keys`. Raises ConfigError, also if one of them has secret members."""
    parsed = content if isinstance(content, Mapping) else _parsed(content)
    values = parsed.get("keys") if isinstance(parsed, Mapping) else None
    if not isinstance(values, list):
        raise ConfigError('not a JWKS: expected a JSON object with a list "keys" (RFC 7517, 5)')
    if len(values) > MAX_KEYS:
        raise ConfigError(f"the JWKS has {len(values)} keys: at most {MAX_KEYS} are accepted")
    _refuse_secrets("the set itself", parsed)
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ConfigError(f"not a JWKS: key {number} is not an object")
        _refuse_secrets(f"key {number}", value)
    return values


def _refuse_secrets(where: str, members: Mapping[str, Any]) -> None:
    for name in _SECRET_MEMBERS:
        if name in members:
            kind = "symmetric" if name == "k" else "private"
            raise ConfigError(
                f"the JWKS is refused, because {where} is {kind} (it has {name!r}): publish public keys only, and "
                "replace this one"
            )


def _parsed(content: bytes) -> Any:
    if len(content) > MAX_KEY_SET_BYTES:
        raise ConfigError(f"the JWKS has {len(content)} bytes: at most {MAX_KEY_SET_BYTES} are accepted")
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"the JWKS is not JSON in UTF-8 ({type(exc).__name__})") from exc
