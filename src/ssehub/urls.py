"""URLs as messages and log lines show them: without the passwords that they may contain."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:/*")
_END_OF_AUTHORITY = re.compile(r"[/?#]")


def without_credentials(url: str) -> str:
    """Return `url` without user name, password, query and fragment. `url` need not be valid.

    If it is unclear where the password ends, because a / or ? in it is not escaped, only the scheme is returned.
    """
    found = _SCHEME.match(url)
    scheme, rest = (found[0], url[found.end() :]) if found else ("", url)
    end = _END_OF_AUTHORITY.search(rest)
    authority, path = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in path:
        return f"{scheme}..."
    host = authority.rpartition("@")[2]
    return scheme + host + re.split(r"[?#]", path, maxsplit=1)[0]
