"""The headers that every response of a server has: the date, and those of uvicorn's configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from email.utils import formatdate


class DefaultHeaders:
    """Says what these headers are at present, as they are written: `others`, and the date before them.

    `now` returns Unix time, in seconds.

    uvicorn's servers renew the date once a second, whether or not anything is answered. Here it is made for
    the first response of a second, so that a server at rest does nothing.
    """

    def __init__(
        self,
        others: Iterable[tuple[bytes, bytes]],
        *,
        has_date: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._has_date = has_date
        self._others = b"".join([b"%b: %b\r\n" % header for header in others])
        self._now = now
        self._second = -1
        self._lines = self._others

    def lines(self) -> bytes:
        """Return the headers, each with its line end."""
        second = int(self._now())
        if second != self._second:  # the clock may also have been set back
            self._second = second
            if self._has_date:
                self._lines = b"date: %b\r\n%b" % (formatdate(second, usegmt=True).encode(), self._others)
        return self._lines
