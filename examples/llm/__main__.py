"""Answers of a stand-in for a language model: run `python examples/llm`, then open http://127.0.0.1:8080.

Ask something, reload the page in the middle of the answer, open a second tab, press Stop, and ask again.

With `python examples/llm --separate-hub` the hub is a process of its own, with its runs in SQLite, and the page has a
button that kills it with SIGKILL: the answer goes on a second later. The variables LLM_PORT, LLM_HUB_PORT and
LLM_CONTROL_PORT choose other ports than 8080 and, for the separate hub, 8000 and 8001.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import uvicorn
from backend import Backend

from hubs import AnswersHub, HubInProcess, HubOfItsOwn

PORT = int(os.environ.get("LLM_PORT", "8080"))
HUB_PORT = int(os.environ.get("LLM_HUB_PORT", "8000"))
CONTROL_PORT = int(os.environ.get("LLM_CONTROL_PORT", "8001"))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("ssehub").setLevel(logging.WARNING)
    if "--separate-hub" not in sys.argv[1:]:
        return serve(HubInProcess())
    with tempfile.TemporaryDirectory(prefix="ssehub-llm-") as folder:
        origins = f"http://127.0.0.1:{PORT},http://localhost:{PORT}"
        serve(HubOfItsOwn(HUB_PORT, CONTROL_PORT, origins, Path(folder, "runs.db")))


def serve(hub: AnswersHub) -> None:
    sys.stderr.write(f"\nOpen http://127.0.0.1:{PORT}\n\n")
    uvicorn.run(Backend(hub).app(), port=PORT, log_level="warning", http="ssehub.server:HttpProtocol")


if __name__ == "__main__":
    main()
