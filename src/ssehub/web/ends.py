"""How to end a response whose client should reconnect: complete it, or cut it off.

A native `EventSource` comes back after a complete response (HTML standard, section 9.2.3). Many clients built on
`fetch` take a complete response for the end, and come back only after one that is cut off: the connection is closed
without the last chunk (RFC 9112, section 8). For native clients a cut would do harm: proxies and browsers log an error
for each, and a frame written right before a cut may be lost over HTTP/2.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidRequest
from ..settings import ComebackEnd


def is_cut(end: str | None, comeback_end: ComebackEnd, headers: Mapping[str, str]) -> bool:
    """True if this client's response should be cut off when the client should reconnect.

    `end` is the query parameter of that name; without it the setting `comeback_end` decides. Raises InvalidRequest.
    """
    if end not in (None, "clean", "cut"):
        raise InvalidRequest(f"unknown end {end[:40]!r}: use clean or cut, or leave it out")
    choice = end or comeback_end
    return not _is_native(headers) if choice == "auto" else choice == "cut"


def _is_native(headers: Mapping[str, str]) -> bool:
    """True if a browser's native EventSource sent the request.

    Chromium, Firefox and WebKit send exactly this `Accept` and `Cache-Control`, and `Sec-Fetch-Mode` except over plain
    http to other hosts than localhost. A request by `fetch` has no `Cache-Control`, unless it is made with
    `cache: "no-store"`, after a hard reload, or while the browser's developer tools disable the cache. Node's `fetch`
    sends `Sec-Fetch-Mode`, too.
    """
    if headers.get("accept") != "text/event-stream" or headers.get("cache-control") != "no-cache":
        return False
    is_browser = "sec-fetch-mode" in headers or headers.get("user-agent", "").startswith("Mozilla/")
    return is_browser and "datastar-request" not in headers
