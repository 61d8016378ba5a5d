"""Where `Tokens` gets its secrets and keys from: files that are watched, and a URL that is fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..watched import NOTHING_YET, LastGood, WatchedFile, watch
from .fetching import FetchedKeys, is_url

if TYPE_CHECKING:
    from ..fanout.statistics import Statistics

SECRET_FILE = "secret_file"
JWKS = "jwks"


class KeySources:
    """Reads `secret_file` and `jwks`, a file or a URL. Each `use_…` puts a text to use and returns a summary of it.

    Files are read in the constructor, unless `last_good` has their content. Raises ConfigError.
    """

    def __init__(
        self,
        *,
        secret_file: Path | None,
        jwks: str | Path | None,
        use_secrets: Callable[[str], str],
        use_keys: Callable[[str], str],
        last_good: LastGood = NOTHING_YET,
    ) -> None:
        self._files: dict[str, WatchedFile] = {}
        self.fetched: FetchedKeys | None = None
        """The keys behind a URL, if `jwks` is one."""
        if secret_file is not None:
            self._files[SECRET_FILE] = WatchedFile(
                Path(secret_file), SECRET_FILE, use_secrets, content=last_good.get(SECRET_FILE)
            )
        if isinstance(jwks, str) and is_url(jwks):
            self.fetched = FetchedKeys(jwks, use_keys, content=last_good.get(JWKS))
        elif jwks is not None:
            self._files[JWKS] = WatchedFile(Path(jwks), JWKS, use_keys, content=last_good.get(JWKS))

    @property
    def problem(self) -> str | None:
        """Why tokens of the identity provider can't be verified yet."""
        return self.fetched.problem if self.fetched is not None else None

    @property
    def last_good(self) -> LastGood:
        """What is in use."""
        contents = {name: file.content for name, file in self._files.items()}
        if self.fetched is not None and self.fetched.content is not None:
            contents[JWKS] = self.fetched.content
        return contents

    async def run(self) -> None:
        """Look at the files and fetch the keys until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._files:
                group.create_task(watch(list(self._files.values())))
            if self.fetched is not None:
                group.create_task(self.fetched.run())

    async def reload(self) -> None:
        """Read and fetch everything now. What can't be used is logged, and what was there before stays in use."""
        fetching = [self.fetched.reload()] if self.fetched is not None else []
        await asyncio.gather(*[file.reload() for file in self._files.values()], *fetching)

    def measure(self, statistics: Statistics) -> None:
        """Write what `/metrics` shows of it."""
        for file in self._files.values():
            file.measure(statistics)
        if self.fetched is not None:
            statistics.jwks_fetch_failures = self.fetched.failures
            statistics.jwks_age_seconds = self.fetched.age_seconds


def secrets_of(text: str) -> list[str]:
    """Return the secrets in the text of a `secret_file`: one on each line; blank lines are ignored.

    Spaces belong to a secret. Raises ConfigError if there is none.
    """
    found = [line.rstrip("\r") for line in text.split("\n")]
    secrets = [secret for secret in found if secret.strip()]
    if not secrets:
        raise ConfigError("there is no secret in it: give 32 random bytes or more, e.g. from `openssl rand -base64 32`")
    return secrets
