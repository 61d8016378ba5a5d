"""Whole requests to the control app, as bytes: plain ones, odd ones, and those that are refused."""

from __future__ import annotations

from control_requests import FORM, JSON, MULTIPART, NDJSON, multipart
from ssehub.server.protocol import PART_BYTES

EVENT = b"userId=*&channel=chat&data=hello"
ONE = b'{"userId":"a","channel":"chat","data":"1"}'
KEY = "a control key of 32 bytes, or rather more"


def request(body: bytes = EVENT, *headers: str, path: str = "/emit/", kind: dict[str, str] = FORM) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind['content-type']}", *headers]
    if not any("Transfer-Encoding" in header for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 7) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in parts]) + b"0\r\nX-Trailer: y\r\n\r\n"


REQUESTS = {
    "form": request(),
    "no slash": request(path="/emit"),
    "type and id": request(EVENT + b"&event=news&id=7&retry=500"),
    "escapes": request(b"userId=%E2%82%AC&channel=chat&data=a+b%0Ac%26"),
    "payload": request(b"userId=*&channel=chat&payload=data%3A+x%0A%0A"),
    "fields in the query": request(b"data=hello", path="/emit/?userId=*&channel=chat"),
    "json": request(b'{"userId":["a","b"],"channel":"chat","data":{"n":1}}', kind=JSON),
    "batch": request(
        b'[{"userId":"a","channel":"chat","data":"1"},{"userId":"a","channel":"c","data":"2"}]', kind=JSON
    ),
    "lines": request(
        b'{"userId":"a","channel":"chat","data":"1"}\n{"userId":"a","channel":"c","data":"2"}', kind=NDJSON
    ),
    "multipart": request(multipart(("userId", "*"), ("channel", "chat"), ("data", "hello")), kind=MULTIPART),
    "idempotency key": request(EVENT, "Idempotency-Key: same"),
    "chunked": request(chunked(EVENT), "Transfer-Encoding: chunked"),
    "last of its connection": request(EVENT, "Connection: close"),
    "HTTP/1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "expects": request(EVENT, "Expect: 100-continue"),
    "large": request(EVENT + b"x" * (2 * PART_BYTES)),
    "token": request(b"userId=alex&channel=chat", path="/token/"),
    "token as json": request(b'{"userId":"alex","channels":["chat"],"expiresIn":60}', path="/token/", kind=JSON),
    "unknown field": request(EVENT + b"&dat=x"),
    "missing field": request(b"userId=*&data=x"),
    "not JSON": request(b"{", kind=JSON),
    "not JSON of an object": request(b"3", kind=JSON),
    "not UTF-8": request(EVENT + b"\xff"),
    "compressed": request(EVENT, "Content-Encoding: gzip"),
    "other type": request(EVENT, kind={"content-type": "text/plain"}),
    "no body": request(b""),
    "too large": request(b"userId=*&channel=chat&data=" + b"x" * 5_000),
    "page": request(EVENT, "Origin: https://evil.example"),
    "forwarded": request(EVENT, "X-Forwarded-For: 192.0.2.1"),
    "other host": request().replace(b"localhost", b"evil.example"),
    "method": request().replace(b"POST", b"PUT"),
    "GET": b"GET /emit/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": request(EVENT, "Content-Length: 3"),
    "upgrade": request(EVENT, "Connection: Upgrade", "Upgrade: h2c"),
}
KEYED = {
    "no key": request(),
    "wrong key": request(EVENT, "Authorization: Bearer " + "x" * 32),
    "key": request(EVENT, f"Authorization: Bearer {KEY}"),
    "forwarded": request(EVENT, f"Authorization: Bearer {KEY}", "Via: 1.1 proxy"),
}
