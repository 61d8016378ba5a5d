"""A chat: run `python examples/chat`, then open http://127.0.0.1:8080 in two windows.

It starts a hub (`ssehub serve`) and the chat's own backend. Both end with Ctrl-C, or when the hub ends by itself; the
exit code is then 1. The variables CHAT_PORT, CHAT_HUB_PORT and CHAT_CONTROL_PORT choose other ports than 8080, 8000 and
8001.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time

import uvicorn

PORTS = {
    name: int(os.environ.get(name, default))
    for name, default in (("CHAT_PORT", 8080), ("CHAT_HUB_PORT", 8000), ("CHAT_CONTROL_PORT", 8001))
}
PORT, HUB_PORT, CONTROL_PORT = PORTS.values()


def main() -> None:
    require_free_ports()
    os.environ["CHAT_HUB_URL"] = f"http://127.0.0.1:{HUB_PORT}"
    os.environ["CHAT_CONTROL_URL"] = f"http://127.0.0.1:{CONTROL_PORT}"
    arguments = ["--bind", f"127.0.0.1:{HUB_PORT}", "--control-bind", f"127.0.0.1:{CONTROL_PORT}"]
    origins = f"http://127.0.0.1:{PORT},http://localhost:{PORT}"
    hub = subprocess.Popen(
        [sys.executable, "-m", "ssehub", "serve", *arguments, "--cors-origins", origins],
        env={**os.environ, "SSEHUB_SECRET": secrets.token_urlsafe(32)},
        start_new_session=True,  # so that Ctrl-C reaches this process only, which then ends the hub
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM ends the hub, too
    try:
        backend = uvicorn.Server(uvicorn.Config("backend:app", port=PORT, log_level="warning"))
        threading.Thread(target=watch, args=(hub, backend), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            backend.run()
    finally:
        status = hub.poll()
        hub.terminate()
        hub.wait()
    if status is not None:
        sys.exit(f"chat: the hub has ended by itself, with exit code {status}")


def require_free_ports() -> None:
    """Exit if a port is in use: the page would reach another hub, which does not allow the page's origin."""
    for name, port in PORTS.items():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as exc:
            sys.exit(f"chat: port {port}: {exc.strerror}. Stop what uses it, such as `make run`, or set {name}.")


def watch(hub: subprocess.Popen[bytes], backend: uvicorn.Server) -> None:
    """Say where the page is as soon as it can be used, and stop the backend when the hub ends."""
    while hub.poll() is None and not (backend.started and listens(HUB_PORT)):
        time.sleep(0.05)
    if hub.poll() is None:
        sys.stderr.write(f"\nOpen http://127.0.0.1:{PORT} in two windows.\n\n")
    hub.wait()
    backend.should_exit = True


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


if __name__ == "__main__":
    main()
