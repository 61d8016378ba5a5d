"""`sqlite:///path`: the log in a file, for one process; it survives `kill -9` and power loss."""

from .broker import SqliteBroker
from .logfile import LogFile, open_log

__all__ = ["LogFile", "SqliteBroker", "open_log"]
