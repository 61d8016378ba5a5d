"""`sqlite:///path`: the log and the runs in two files, for one process; they survive `kill -9` and power loss."""

from .broker import SqliteBroker
from .logfile import LogFile, open_log

__all__ = ["LogFile", "SqliteBroker", "open_log"]
