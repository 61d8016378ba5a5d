"""curl, started again whenever it has ended: `python curl.py URL TYPES`.

curl has no notion of events. What a script does with the lines that it prints is done here: an event ends at an empty
line, and what is incomplete when curl ends is dropped. Exit code 0 is a clean end, 18 a response that was cut, 22 a
status of 400 or more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

OPTIONS = ["--silent", "--show-error", "--fail", "--no-buffer"]


def report(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(url: str) -> None:
    last_id, retry_seconds = "", 1.0
    while True:
        header = ["--header", f"Last-Event-ID: {last_id}"] if last_id else []
        curl = subprocess.Popen(["curl", *OPTIONS, *header, url], stdout=subprocess.PIPE)
        assert curl.stdout
        fields: dict[str, str] = {}
        for line in curl.stdout:
            if not line.endswith(b"\n"):
                break
            name, _, value = line.decode().rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                fields["data"] = f"{fields['data']}\n{value}" if "data" in fields else value
            elif name == "retry":
                retry_seconds = int(value) / 1000
            elif name:
                fields[name] = value
            elif line == b"\n":
                last_id = fields.get("id", last_id)
                if "data" in fields:
                    report({"type": fields.get("event", "message"), "id": last_id, "data": fields["data"]})
                fields = {}
        code = curl.wait()
        report({"error": f"curl has ended with exit code {code}"})
        if code == 22:
            report({"ended": "the server has refused the request"})
            return
        time.sleep(retry_seconds)


main(sys.argv[1])
