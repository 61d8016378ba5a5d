"""nginx as it is without `proxy_request_buffering off`: it passes a request on when all of its body has arrived."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import connects, free_port, require, wait_until


@contextmanager
def buffering_nginx(folder: Path, control_port: int) -> Iterator[int]:
    """Run nginx in front of a control app; yield its port."""
    require(shutil.which("nginx"), "nginx")
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log off; client_body_buffer_size 1m; {temporary} server {{ listen 127.0.0.1:{port};\n"
        f"location / {{ proxy_pass http://127.0.0.1:{control_port}; proxy_set_header Host $http_host; }} }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/log"])
    try:
        wait_until(lambda: connects(port))
        yield port
    finally:
        process.terminate()
        process.wait(10)
