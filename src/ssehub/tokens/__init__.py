"""Tokens: JSON Web Tokens (RFC 7519) that say who listens to what. The only room that uses python-jose."""

from .access import MAX_CHANNELS, MAX_LIFETIME_SECONDS
from .compact import MAX_HEADER_LENGTH, MAX_TOKEN_LENGTH
from .keyset import KeySet
from .sources import secrets_of
from .tokens import SignedToken, Tokens

__all__ = [
    "MAX_CHANNELS",
    "MAX_HEADER_LENGTH",
    "MAX_LIFETIME_SECONDS",
    "MAX_TOKEN_LENGTH",
    "KeySet",
    "SignedToken",
    "Tokens",
    "secrets_of",
]
