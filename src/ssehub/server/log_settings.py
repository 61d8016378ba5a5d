"""The settings of the log, which are read again from the config file while the hub runs."""

from __future__ import annotations

import asyncio
import logging

from ..config import Config
from ..watched import NOTHING_YET, FromFile, LastGood, WatchedFile
from .credentials import Credentials
from .logs import StderrLog

logger = logging.getLogger("ssehub.server")

FILE = "config"
"""What log lines and metrics call the config file."""
READ_AGAIN = ("log_level", "log_format")


class LogSettings(FromFile):
    """Applies `log_level` and `log_format` to `log` when the config file changes. All or nothing, as `WatchedFile`.

    The command line and the environment still count before the file. Raises ConfigError.
    """

    def __init__(self, config: Config, log: StderrLog, last_good: LastGood = NOTHING_YET) -> None:
        """`last_good` is what another process has read last, and `config` what the process has started with."""
        super().__init__()
        self._log = log
        if config.file is not None:
            self._parse = config.file.parse
            self._started = self._parse(config.file.text)
            content = last_good.get(FILE, config.file.text)
            self._file = WatchedFile(config.file.path, FILE, self._apply, content=content)

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
