"""Node, and the scripts that run under it with packages of npm."""

from __future__ import annotations

import sys
from pathlib import Path

_E2E = Path(__file__).parent / "e2e"
NODE = Path(sys.executable).parent / "node"
NODE_MODULES = _E2E / "node_modules"
POLYFILL = NODE_MODULES / "event-source-polyfill" / "src" / "eventsource.min.js"
LISTEN = _E2E / "listen.mjs"
"""Prints a given number of events, with their ids, then exits."""
RECONNECT = _E2E / "reconnect.mjs"
"""Prints the data of every event, and reconnects for as long as it runs."""
CHAT = _E2E / "chat.mjs"
"""Sends a message with the package ai, reconnects when its stream breaks off, and prints what it has at the end."""
