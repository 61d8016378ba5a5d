"""The events of a run: the fields that a publisher gives, and the bytes that a watcher is sent.

An event of a run is for everyone who watches it, so it has no channel and no user. An id that its publisher gave is
kept as a field, for the backend that reads the run; the `id:` that a watcher is sent is always the event's position.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import NamedTuple, Self

from ..errors import InvalidEvent
from ..event import SEPARATOR, encode_data
from ..fields import check_id, check_retry, check_type, to_utf8


class RunEvent(NamedTuple):
    """One event. `checked` makes one of a publisher's fields; the constructor itself checks nothing."""

    data: str
    type: str | None = None
    id: str | None = None
    retry: int | None = None

    @classmethod
    def checked(cls, data: object, type: object = None, id: object = None, retry: object = None) -> Self:
        """Return the event with these fields. Raises InvalidEvent, which names the field as it is on the wire."""
        if data is None:
            raise InvalidEvent("data is missing: an event of a run needs 'data' or 'payload'")
        to_utf8("data", data)
        if type is not None:
            check_type("event", type)
        if id is not None:
            check_id("id", id)
        if retry is not None:
            check_retry(retry)
        return cls(data, type, id, retry)  # type: ignore[arg-type]  # the checks raise for other types

    @property
    def size(self) -> int:
        """Bytes of its fields, in UTF-8."""
        data = self.data
        size = len(data) if data.isascii() else len(data.encode())
        if self.type is not None:
            size += len(self.type.encode())
        return size if self.id is None else size + len(self.id.encode())

    def dump(self) -> str:
        """Return the event as a JSON array, for `load`: what a store keeps."""
        if self.type is None and self.id is None and self.retry is None:
            return f"[{encode_basestring(self.data)}]"  # what json.dumps does, in a tenth of the time
        return json.dumps(self, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def load(cls, text: str | bytes) -> Self:
        """Return the event that `dump` returned as `text`."""
        return cls(*json.loads(text))

    def encode(self, ordinal: int, log: str) -> bytes:
        """Return the frame that a watcher is sent."""
        return encode_data(self.data, self.type, f"{ordinal}-0.{log}", self.retry)

    def encode_data(self) -> bytes:
        """Return its `data:` lines alone, as a frame without type and id: see `?dialect=ai-sdk`."""
        data = self.data
        if "\n" in data or "\r" in data:
            data = data.replace("\r\n", "\n").replace("\r", "\n").replace("\n", f"{SEPARATOR}data: ")
        return f"data: {data}{SEPARATOR}{SEPARATOR}".encode()
