"""Listening sockets, with the options that end connections to clients that vanish or stop reading."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..address import Address
from ..errors import AddressError
from ..settings import TcpOptions

CLIENT_MODE, CONTROL_MODE = 0o666, 0o660
"""Permissions of the apps' Unix sockets: every user of the machine may connect, or only the owner and the group."""
_RESERVED_MODE = 0o600
_BACKLOG = 4096


@contextmanager
def listen(address: Address, *, options: TcpOptions, mode: int, is_shared: bool = False) -> Iterator[socket.socket]:
    """Listen on `address` inside the context. Accepted connections inherit the options of the socket.

    `mode` is the permissions of a Unix socket. If `is_shared`, other processes of the same user may listen on the same
    port, and the kernel distributes the connections. Raises AddressError.
    """
    sock = _listen_unix(address.path, mode) if address.path is not None else _listen_tcp(address, options, is_shared)
    with _closing(sock, address.path):
        yield sock


@contextmanager
def reserve(address: Address) -> Iterator[None]:
    """Keep every other process from listening on `address` inside the context, and answer nobody there.

    Raises AddressError.
    """
    sock = _listen_unix(address.path, _RESERVED_MODE) if address.path is not None else _bind_only(address)
    with _closing(sock, address.path):
        yield


@contextmanager
def _closing(sock: socket.socket, path: str | None) -> Iterator[None]:
    try:
        yield
    finally:
        sock.close()
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _listen_tcp(address: Address, options: TcpOptions, is_shared: bool) -> socket.socket:
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
        sock.bind((address.host or ("::" if family == socket.AF_INET6 else "0.0.0.0"), address.port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError, TypeError) as exc:
        sock.close()
        raise AddressError(f"can't listen on {address}: {_reason(exc, address.port)}") from exc
    return sock


def _set_options(sock: socket.socket, options: TcpOptions) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Without this bound, the kernel buffers 4 MB for a client that never reads before the hub notices.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.send_buffer_bytes)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.tcp_user_timeout_seconds * 1000))


def _bind_only(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in (address.host or "") else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((address.host or "0.0.0.0", address.port))
    except (OSError, OverflowError, TypeError) as exc:
        sock.close()
        raise AddressError(f"can't reserve {address}: {_reason(exc, address.port)}") from exc
    return sock


def _listen_unix(path: str, mode: int) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        raise _unix_error(path, exc) from exc
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file on which no process listens. Raises AddressError for a socket in use or another file."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise AddressError(f"can't listen on unix:{path}: the file exists and is not a socket")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise _unix_error(path, exc) from exc
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as exc:
            raise _unix_error(path, exc) from exc
        else:
            raise AddressError(f"can't listen on unix:{path}: another process listens on this socket")


def _unix_error(path: str, exc: OSError) -> AddressError:
    reason = exc.strerror or "the path is too long for a Unix socket: choose a shorter one"
    return AddressError(f"can't listen on unix:{path}: {reason}")


def _reason(exc: Exception, port: int) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        process = _process_that_listens(port)
        if process is None:
            return "the port is in use; choose another port"
        return f"the port is in use by {process}; choose another port, or stop that process"
    if isinstance(exc, OSError) and exc.errno == errno.EACCES:
        return "only root may use ports below 1024; choose a higher one"
    if isinstance(exc, TypeError):  # Python can't encode the name for DNS
        return "that is not a valid host name"
    return str(exc.strerror if isinstance(exc, OSError) and exc.strerror else exc)


def _process_that_listens(port: int) -> str | None:
    """Return the name and the id of the process that listens on `port`, if /proc shows them."""
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
