"""What an HTTP connection reads: the parts of one request after the other.

reading   of the request that arrives                                   next
BETWEEN   nothing yet                                                   HEAD, NOTHING
HEAD      its URL and headers, again if an upgrade is ignored           BODY, HEAD, NOTHING
BODY      its body, which is empty in most requests, and its trailers   BETWEEN, NOTHING
NOTHING   nothing more is read: the connection ends after the responses
          that are due, belongs to a stream, or is lost
"""

from __future__ import annotations

from enum import Enum


class Reading(Enum):
    """What of a request is being read."""

    BETWEEN = "between"
    """Nothing: the next request has not begun."""
    HEAD = "head"
    BODY = "body"
    NOTHING = "nothing"
    """Nothing more of this connection: it ends after the responses that are due, or belongs to a stream."""

    __hash__ = object.__hash__  # Enum's own is a Python function


NEXT: dict[Reading, tuple[Reading, ...]] = {
    Reading.BETWEEN: (Reading.HEAD, Reading.NOTHING),
    Reading.HEAD: (Reading.BODY, Reading.HEAD, Reading.NOTHING),  # an upgrade is ignored: the head is read again
    Reading.BODY: (Reading.BETWEEN, Reading.NOTHING),
    Reading.NOTHING: (Reading.NOTHING,),
}
"""What may follow what."""
