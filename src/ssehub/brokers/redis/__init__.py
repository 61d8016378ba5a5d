"""`redis://`: the log in Redis or Valkey, one stream that every node of a deployment appends to and reads.

The script `log.lua` runs in Redis. It numbers the entries without a gap and marks each with the log's name, because a
stream does not show that a part of it is missing. A node that finds a gap in the numbers, another name, or a log that
ends before a position it knows, reports that to its hub.

Two tasks, `Writer` and `Reader`, have a connection each, which no other task uses. At the first error a connection is
closed, so that a late reply is never mistaken for the reply to another command, and no command is sent twice.
"""

from .broker import RedisBroker
from .reader import open_log

__all__ = ["RedisBroker", "open_log"]
