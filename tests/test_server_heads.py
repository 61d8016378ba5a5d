"""The targets of requests: they are taken apart as the parser of URLs would take them apart."""

from __future__ import annotations

import os

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from ssehub.server.heads import Refusal, target

SCALED = settings(max_examples=20_000 if "SOAK" in os.environ else 300, deadline=None)
PIECES = [bytes([byte]) for byte in range(33, 127)] + [b"//", b"..", b"%41", b"%", b"http://x", b"?", b"#"]
URLS = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: b"/" + b"".join(pieces))


@SCALED
@given(URLS)
def test_target_is_that_of_the_parser_of_urls(url: bytes) -> None:
    parsed = httptools.parse_url(url)

    found = target(url)

    assert not isinstance(found, Refusal)
    assert found[1:] == (parsed.path or b"/", parsed.query or b"")


def test_request_parser_refuses_what_the_parser_of_urls_refuses() -> None:
    """So `target` may take a URL apart by itself: it is called for those that the first one has accepted."""
    for byte in range(256):
        for url in (b"/%b" % bytes([byte]), b"/?%b" % bytes([byte])):
            assert is_accepted(url) == is_url(url), url


def is_url(url: bytes) -> bool:
    try:
        httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return False
    return True


def is_accepted(url: bytes) -> bool:
    class Seen:
        url = b""

        def on_url(self, part: bytes) -> None:
            self.url += part

    seen = Seen()
    try:
        httptools.HttpRequestParser(seen).feed_data(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % url)
    except httptools.HttpParserError:
        return False
    return seen.url == url
