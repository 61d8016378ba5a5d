"""Proxies that hold what is sent until the end of a request, as far as a publisher has found out."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("ssehub.publisher")

BUFFERING_REMEMBERED_SECONDS = 600.0
"""How long a publisher believes what it has found out about proxies."""


class Buffering:
    """What one publisher knows of a proxy on the way to the hub. It is checked anew after ten minutes."""

    def __init__(self) -> None:
        self._is_found = False
        self._checked_at: float | None = None
        self._has_warned = False

    @property
    def is_known(self) -> bool:
        return self._checked_at is not None and time.monotonic() - self._checked_at < BUFFERING_REMEMBERED_SECONDS

    @property
    def is_found(self) -> bool:
        """True if a proxy holds what is sent until the end of the request."""
        return self._is_found and self.is_known

    def note(self, url: str, *, is_found: bool) -> None:
        self._is_found = is_found
        self._checked_at = time.monotonic()
        if is_found and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: a proxy holds what is sent until the request ends, so events are sent in many short requests, "
                "which costs more; in nginx, set proxy_request_buffering off and proxy_http_version 1.1",
                url,
            )
