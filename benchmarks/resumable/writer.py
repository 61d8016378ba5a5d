"""A producer in a process of its own: `python writer.py CONTROL_URL RUN PREFIX COUNT RATE MODE` writes words."""

from __future__ import annotations

import sys
import time

from ssehub import Publisher


def main(control_url: str, name: str, prefix: str, count: int, rate: float, mode: str) -> None:
    with (
        Publisher(control_url) as publisher,
        publisher.run(name, channel="chat", user_id="alex", restart=mode == "restart") as run,
    ):
        for number in range(1, count + 1):
            run.append(data=f"{prefix}{number}")
            time.sleep(1 / rate)


if __name__ == "__main__":
    control_url, name, prefix, count, rate, mode = sys.argv[1:]
    main(control_url, name, prefix, int(count), float(rate), mode)
