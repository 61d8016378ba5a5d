"""The secret and the control key: which values are refused because they are known, guessable or unusable.

The messages never show the value.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re

from .errors import ConfigError

SHORT_SECRET_BYTES = 32
"""A shorter secret or control key causes a warning (RFC 7518, 3.2: a key at least as long as the hash)."""
MIN_CONTROL_KEY_BYTES = 16
_MIN_DISTINCT_CHARACTERS = 6
_RANDOM = "use a random string, e.g. from `openssl rand -base64 32`"
_NO_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
_UNSENDABLE = re.compile(r"^ | $|[\x00-\x1f\x7f\ud800-\udfff]")
_WELL_KNOWN_VALUES = """
a admin administrator apikey astringsecretatleast256bitslong bearer changeit changeme changemenow changemeplease
changethis changethismercurehubjwtkey changethismercurehubjwtsecretkey changethispublisherkey changethissecret
changethissubscriberkey controlkey default defaultkey defaultsecret demo dev development example foo foobar guest
hmacsecret hs256secret insecure jwt jwtkey jwtsecret jwtsecretkey jwttoken key keyboardcat letmein master masterkey
mysecret mysecretkey mysupersecret mysupersecretkey none nosecret notsecret notsosecret pass passphrase passw0rd
passwd password placeholder private privatekey public qwerty qwertyuiop qwertyuiopasdfghjklzxcvbnm random
randomsecret replaceme root s3cr3t s3cret sample secret secretkey secretpassword secretsecret secrettoken shhh
shhhh shhhhh shhhhhh signingkey somesecret ssehub supersecret supersecretkey supersecretpassword supersecrettoken
test testkey testsecret thisisasecret thisisasecretkey thistokenisnotsosecretchangeit todo token topsecret
undefined user verysecret verysecretkey welcome xxx your256bitsecret your384bitsecret your512bitsecret
yourjwtsecret yourkey yoursecret yoursecrethere yoursecretkey yoursecretkeyhere yoursecrettoken yoursupersecret
yoursupersecretkey
"""
"""Defaults and examples of hubs, frameworks and JWT libraries, and the first guesses of wordlists for them.

In small letters, and without digits at the end, punctuation and spaces: `!ChangeMe!` and `changeme123` are `changeme`.
"""
_WELL_KNOWN = frozenset(_WELL_KNOWN_VALUES.split())


def is_short(value: str) -> bool:
    """True if a secret or control key might be guessed because of its length."""
    return len(value.encode(errors="surrogatepass")) < SHORT_SECRET_BYTES


def check_secret(secret: str) -> None:
    """Raise ConfigError if `secret` is publicly known or unusable for HMAC."""
    if not isinstance(secret, str):
        raise ConfigError(f"the secret must be a string of 32 random bytes or more, not {type(secret).__name__}")
    if not secret.strip():
        raise ConfigError("the secret is empty: use 32 random bytes or more, e.g. from `openssl rand -base64 32`")
    try:
        secret.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the secret is not text in UTF-8: {_RANDOM}") from None
    if _is_well_known(secret):
        raise ConfigError(f"the secret is a publicly known default or example: {_RANDOM}")
    if "-----BEGIN" in secret or secret.startswith(("ssh-rsa", "ssh-ed25519")):
        raise ConfigError("the secret is a PEM or SSH key: tokens are signed with HMAC, choose a random string")
    try:
        value = json.loads(secret, parse_float=lambda _: 0)
    except (ValueError, RecursionError):
        value = 0
    if value is None or isinstance(value, str | list | dict | bool | float):
        raise ConfigError("the secret is JSON, which python-jose would read as a key set: choose a random string")


def check_control_key(key: str, name: str = "control_key") -> None:
    """Raise ConfigError, which calls the key `name`, if it is empty, publicly known, easy to guess, or can't be sent.

    It is sent in a header.
    """
    if not isinstance(key, str):
        raise ConfigError(f"{name} must be a string of 16 bytes or more, not {type(key).__name__}")
    if not key.strip():
        raise ConfigError(f"{name} is empty: give a random string, or remove the setting")
    if _is_well_known(key):
        raise ConfigError(f"{name} is a publicly known default or example: {_RANDOM}")
    size = len(key.encode(errors="surrogatepass"))
    if size < MIN_CONTROL_KEY_BYTES:
        raise ConfigError(f"{name} has {size} bytes: at least {MIN_CONTROL_KEY_BYTES} are required, {_RANDOM}")
    if _UNSENDABLE.search(key):
        raise ConfigError(
            f"{name} begins or ends with a space, or contains a control character or a lone surrogate, which can't "
            "be sent in a header: remove it"
        )
    if len(set(key)) < _MIN_DISTINCT_CHARACTERS or key.isdigit():
        raise ConfigError(f"{name} is easy to guess, because it repeats characters or has only digits: {_RANDOM}")


def is_hash_of_known_value(digest: bytes) -> bool:
    """True if `digest` is the SHA-256 of nothing, or of a known default in one of its usual spellings.

    Others, such as `change-me-please-2024`, can be recognised only when the key itself is sent.
    """
    return digest in _known_hashes()


@functools.cache
def _known_hashes() -> frozenset[bytes]:
    words = {"", *_WELL_KNOWN}
    spellings = {spelling for word in words for spelling in (word, word.upper(), word.capitalize())}
    endings = ("", "!", "1", "123", "\n")  # `echo KEY | sha256sum` also hashes the line end
    return frozenset([hashlib.sha256(f"{text}{end}".encode()).digest() for text in spellings for end in endings])


def _is_well_known(value: str) -> bool:
    """True if `value` is a known default. Digits at its end, as in `changeme123`, make no difference."""
    plain = _NO_LETTER_OR_DIGIT.sub("", value.casefold())
    return plain in _WELL_KNOWN or plain.rstrip("0123456789") in _WELL_KNOWN
