"""`ssehub serve`: run the hub."""

from __future__ import annotations

import sys
from pathlib import Path

from .help import command, option
from .options import config_option, load, setting_options


@command()
@setting_options
@config_option
@option("--demo", "is_demo", is_flag=True, help="serve a page at / that hears events, on this machine only")
def serve(config_file: Path | None, is_demo: bool, **settings: object) -> None:
    """Run the hub until SIGTERM or Ctrl-C."""
    config = load(config_file, settings)
    if is_demo:
        from ..server.demo import serve_demo

        sys.exit(serve_demo(config))
    # Imported here, as the other commands start faster without the server.
    if config.workers > 1:
        from ..server.workers import serve_by_workers as run
    else:
        from ..server.process import serve as run
    sys.exit(run(config))
