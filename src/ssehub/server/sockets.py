"""Listening sockets: made by us, with the options that end peers which vanish or stop reading."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ..errors import AddressError
from ..settings import TcpOptions

BACKLOG = 4096


class Address(Protocol):
    """Where to listen: a host (None: every interface) and a port, or the path of a Unix socket."""

    @property
    def host(self) -> str | None: ...

    @property
    def port(self) -> int: ...

    @property
    def path(self) -> str | None: ...


def listen(address: Address, *, options: TcpOptions, mode: int, is_shared: bool = False) -> socket.socket:
    """A bound, listening socket; accepted connections inherit its options. `mode` is a Unix socket's permissions.

    One that `is_shared` leaves the port to others of the same user, too: the kernel gives each a part of the
    connections. Raises AddressError, one line, if the address can't be had.
    """
    if address.path is not None:
        return _listen_unix(address.path, mode)
    family = socket.AF_INET6 if address.host is None or ":" in address.host else socket.AF_INET
    if address.host is None and not socket.has_dualstack_ipv6():
        family = socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_options(sock, options)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host is not None))
        host = address.host or ("::" if family == socket.AF_INET6 else "0.0.0.0")
        sock.bind((host, address.port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError, TypeError) as exc:
        sock.close()
        raise AddressError(f"can't listen on {address}: {_reason(exc, address.port)}") from exc
    return sock


@contextmanager
def hold(address: Address) -> Iterator[None]:
    """Inside, nobody else can listen on `address`, and nobody is answered there. Raises AddressError."""
    if address.path is not None:
        sock = _listen_unix(address.path, 0o600)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in (address.host or "") else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.bind((address.host or "0.0.0.0", address.port))
        except (OSError, OverflowError, TypeError) as exc:
            sock.close()
            raise AddressError(f"can't hold {address}: {_reason(exc, address.port)}") from exc
    try:
        yield
    finally:
        sock.close()
        if address.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(address.path)


def _set_options(sock: socket.socket, options: TcpOptions) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Without a bound, one client that never reads takes 4 MB before anybody feels it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.tcp_user_timeout_seconds * 1000))


def _listen_unix(path: str, mode: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise AddressError(f"can't listen on unix:{path}: {_unix_reason(exc)}") from exc
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on; leave anything else alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressError(f"can't listen on unix:{path}: there is a file of that name that is no socket")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise AddressError(f"can't listen on unix:{path}: {_unix_reason(exc)}") from exc
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as exc:
            raise AddressError(f"can't listen on unix:{path}: {_unix_reason(exc)}") from exc
        else:
            raise AddressError(f"can't listen on unix:{path}: somebody listens there already")


def _unix_reason(exc: OSError) -> str:
    return exc.strerror or "the path is too long for a Unix socket: choose a shorter one"


def _reason(exc: Exception, port: int) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        holder = _holder(port)
        return f"the port is in use{f' by {holder}' if holder else ''}; choose another, or end that"
    if isinstance(exc, OSError) and exc.errno == errno.EACCES:
        return "that port is for root only: choose one from 1024 on"
    if isinstance(exc, TypeError):  # what Python makes of a name that DNS can't have
        return "that is no host name"
    return str(exc.strerror if isinstance(exc, OSError) and exc.strerror else exc)


def _holder(port: int) -> str | None:
    """Which process listens on `port`, as far as /proc tells us."""
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    if not inodes:
        return None
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) in inodes:
                process = descriptor.parent.parent
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None


def _listening_inodes(table: str, port: int) -> list[str]:
    try:
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []
    fields = [row.split() for row in rows]
    return [row[9] for row in fields if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
