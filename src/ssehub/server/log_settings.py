"""The settings of the log, which are read again from the config file while the hub runs."""

from __future__ import annotations

import asyncio
import logging

from ..config import Config
from ..fanout.statistics import Statistics
from ..watched import NOTHING_YET, LastGood, WatchedFile, watch
from .credentials import Credentials
from .logs import StderrLog

logger = logging.getLogger("ssehub.server")

FILE = "config"
"""What log lines and metrics call the config file."""
READ_AGAIN = ("log_level", "log_format")


class LogSettings:
    """Applies `log_level` and `log_format` to `log` when the config file changes. All or nothing, as `WatchedFile`.

    The command line and the environment still count before the file. It is a companion of a hub. In a process without
    one, such as the parent of workers, `run` has to be called. Raises ConfigError.
    """

    def __init__(self, config: Config, log: StderrLog, last_good: LastGood = NOTHING_YET) -> None:
        """`last_good` is what another process has read last, and `config` what the process has started with."""
        self._log = log
        self._file: WatchedFile | None = None
        if config.file is not None:
            self._parse = config.file.parse
            self._started = self._parse(config.file.text)
            content = last_good.get(FILE, config.file.text)
            self._file = WatchedFile(config.file.path, FILE, self._apply, content=content)

    @property
    def problem(self) -> str | None:
        """None: the hub is ready with the settings that it has."""
        return None

    @property
    def last_good(self) -> LastGood:
        """The content of the config file that is in use."""
        return {} if self._file is None else {FILE: self._file.content}

    async def run(self) -> None:
        """Look at the file until cancelled."""
        if self._file is not None:
            await watch([self._file])

    async def reload(self) -> None:
        """Read the file now. If it can't be used, that is logged, and everything stays as it was."""
        if self._file is not None:
            await self._file.reload()

    def measure(self, statistics: Statistics) -> None:
        """Write how often the file could not be used."""
        if self._file is not None:
            self._file.measure(statistics)

    def _apply(self, content: str) -> str:
        settings = self._parse(content)
        self._log.use(settings.log_level, settings.log_format)
        changed = [
            name
            for name in type(settings).model_fields
            if name not in READ_AGAIN and getattr(settings, name) != getattr(self._started, name)
        ]
        if changed:
            logger.warning("changed in the config file, but not in use before a restart: %s", ", ".join(changed))
        return ", ".join([f"{name} is {getattr(settings, name)}" for name in READ_AGAIN])


async def read_again(credentials: Credentials, log_settings: LogSettings) -> None:
    """Do what SIGHUP asks for: read everything now that is read again."""
    await asyncio.gather(credentials.reload(), log_settings.reload())
