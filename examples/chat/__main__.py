"""A chat: run `python examples/chat`, then open http://127.0.0.1:8080 in two windows.

It starts a hub (`ssehub serve`) and the chat's own backend. Both end with Ctrl-C, or when the hub ends by itself. The
variables CHAT_PORT, CHAT_HUB_PORT and CHAT_CONTROL_PORT choose other ports than 8080, 8000 and 8001.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading

import uvicorn

PORT = int(os.environ.get("CHAT_PORT", "8080"))
HUB_PORT = int(os.environ.get("CHAT_HUB_PORT", "8000"))
CONTROL_PORT = int(os.environ.get("CHAT_CONTROL_PORT", "8001"))


def main() -> None:
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
        sys.stderr.write(f"\nOpen http://127.0.0.1:{PORT} in two windows.\n\n")
        backend = uvicorn.Server(uvicorn.Config("backend:app", port=PORT, log_level="warning"))
        threading.Thread(target=stop_with, args=(hub, backend), daemon=True).start()
        with contextlib.suppress(KeyboardInterrupt):
            backend.run()
    finally:
        hub.terminate()
        hub.wait()


def stop_with(hub: subprocess.Popen[bytes], backend: uvicorn.Server) -> None:
    """Stop the backend when the hub ends.

    If another hub already uses the ports, this one reports that and exits. The page would then reach the other hub,
    which does not allow the page's origin.
    """
    hub.wait()
    backend.should_exit = True


if __name__ == "__main__":
    main()
