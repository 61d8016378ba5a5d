"""The command: its options in every spelling, and one line and an exit code for each error."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from jose import jwt

from commands import run
from conftest import CONTROL_KEY, SECRET, RunningHub
from ssehub.cli import ssehub
from ssehub.cli.flags import double_dashes
from ssehub.tokens import Tokens


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-bind", ":1"], ["--bind", ":1"]),
        (["-bind=:1", "-bindctl=:2"], ["--bind=:1", "--bindctl=:2"]),
        (["--bind", ":1", "--bindctl=:2"], ["--bind", ":1", "--bindctl=:2"]),
        (["-secret=a=b\nc"], ["--secret=a=b\nc"]),
        (["token", "-userId", "a", "-exp=5"], ["token", "--userId", "a", "--exp=5"]),
        (["--", "-bind"], ["--", "-bind"]),
        (["-x", "-"], ["-x", "-"]),
        (["emit", "--data", "-exp", "-channel", "-bind"], ["emit", "--data", "-exp", "--channel", "-bind"]),
        (["emit", "--data=-exp", "--no-store", "-channel=x"], ["emit", "--data=-exp", "--no-store", "--channel=x"]),
        (["-secret", "-exp", "-help"], ["--secret", "-exp", "--help"]),
    ],
)
def test_options_with_one_dash_get_a_second_one(given: list[str], expected: list[str]) -> None:
    assert double_dashes(given, ssehub.commands.values()) == expected


@pytest.mark.parametrize("flags", [("-bind", "-bindctl"), ("--bind", "--control-bind")])
@pytest.mark.parametrize("joint", [" ", "="])
def test_hub_starts_with_options_in_every_spelling(
    flags: tuple[str, str], joint: str, start_hub: Callable[..., RunningHub]
) -> None:
    options = [f"{flag}{joint}127.0.0.1:0" for flag in flags] + [f"-secret{joint}{SECRET}x"]
    arguments = [part for option in options for part in option.split(" ", 1)] if joint == " " else options

    hub = start_hub(*arguments)

    Tokens(f"{SECRET}x").verify(hub.token())


BAD: dict[str, tuple[list[str], int, str]] = {
    "unknown-option": (["--bnd", "x"], 2, "No such option"),
    "unknown-command": (["serv"], 2, "No such command 'serv'"),
    "bad-bind": (["--bind", "x"], 2, "--bind 'x': must end with a port"),
    "bad-number": (["--drain-seconds", "soon"], 2, "--drain-seconds 'soon': must be a valid number"),
    "no-config": (["--config", "/nonexistent.toml"], 2, "can't read /nonexistent.toml: No such file or directory"),
    "secret-empty": (["--secret", ""], 2, "the secret is empty"),
    "B20-secret-of-the-original": (["-secret", "secret"], 2, "the secret is a publicly known default"),
    "B20-secret-null": (["-secret", "null"], 2, "the secret is JSON"),
    "B20-secret-json": (["-secret", '"x"'], 2, "the secret is JSON"),
    "B20-secret-changeme": (["-secret", "!ChangeMe!"], 2, "the secret is a publicly known default"),
    "control-key-of-one-letter": (["--control-key", "a"], 2, "control_key is a publicly known default"),
    "control-key-well-known": (["--control-key", "changeme"], 2, "control_key is a publicly known default"),
    "control-key-short": (["--control-key", "x7Qk-2"], 2, "control_key has 6 bytes: at least 16 are required"),
    "cors-null-with-a-cookie": (
        ["--cors-origins", "https://app.example,null", "--token-cookie", "sse"],
        2,
        "cors_origins 'null': every page can send it",
    ),
    "cors-path": (["--cors-origins", "https://app.example/"], 2, "cors_origins 'https://app.example/': no browser"),
    "cors-pattern": (
        ["--cors-origins", "https://*.example.org"],
        2,
        "cors_origins 'https://*.example.org': no browser",
    ),
    "leeway": (["--leeway-seconds", "601"], 2, "--leeway-seconds '601': must be at most 600"),
    "control-off-loopback": (["--control-bind", ":0"], 2, "set a control key"),
    "F16-broker": (["--broker", "kafka://x"], 2, "unknown broker"),
    "address-elsewhere": (["--bind", "192.0.2.1:1"], 3, "can't listen on 192.0.2.1:1: "),
    "socket-in-no-folder": (["--bind", "unix:/nonexistent/s"], 3, "can't listen on unix:/nonexistent/s: No such file"),
    "socket-below-a-file": (["--bind", "unix:/etc/passwd/x.sock"], 3, "unix:/etc/passwd/x.sock: Not a directory"),
    "socket-path-long": (["--bind", "unix:/tmp/" + "y" * 110], 3, "too long for a Unix socket: choose a shorter one"),
    "socket-path-very-long": (["--bind", "unix:/tmp/" + "y" * 300], 3, "File name too long"),
    "host-impossible": (["--bind", "é" + "y" * 70 + ":8000"], 3, "that is not a valid host name"),
    "user-timeout": (["--tcp-user-timeout-seconds", "1e9"], 2, "must be less than 2147483"),
    "socket-is-a-file": (["--bind", "unix:/etc/passwd"], 3, "the file exists and is not a socket"),
    "port": (["--port", "8000"], 2, "No such option '--port'. Use --bind HOST:PORT"),
    "host": (["serve", "--host=0.0.0.0"], 2, "No such option '--host'. Use --bind HOST:PORT"),
    "token-no-secret-and-no-hub": (
        ["token", "--user-id", "a", "--channel", "b", "--control-url", "http://127.0.0.1:1", "--retries", "0"],
        1,
        "there is no secret here to sign a token with, and http://127.0.0.1:1 can't be reached",
    ),
    "inspect-nothing": (["token", "--inspect"], 2, "no token is given: use --token-file, --token - for"),
    "inspect-file": (["token", "--inspect", "--token-file", "/nonexistent"], 2, "can't be read: No such file"),
    "token-of-a-new-one": (["token", "--user-id", "a", "--token-file", "x"], 2, "are for --inspect"),
    "listen-nothing": (["listen"], 2, "no token is given: use --token-file"),
    "listen-both": (
        ["listen", "--token-file", "/etc/hostname", "--user-id", "a"],
        2,
        "--user-id and --pattern are for a new token",
    ),
    "listen-url": (["listen", "--channel", "a", "--secret", "x" * 32, "--url", "h:1"], 2, "'h:1' is not a URL such as"),
    "disconnect-nothing": (["disconnect"], 2, "give --user-id, --channel or both"),
    "emit-argument": (["emit", "events.json"], 2, "'events.json' is not an argument: give -"),
    "emit-lines-and-data": (["emit", "-", "--data", "x"], 2, "each line has its own data, payload and id"),
    "emit-no-channel": (["emit", "--data", "x"], 2, "Missing option '--channel'"),
    "control-off": (
        ["disconnect", "--channel", "a", "--config", "{off}"],
        2,
        "control_bind is off: give --control-url",
    ),
    "token-no-user": (["token", "--channel", "b"], 2, "Missing option '--user-id'"),
    "token-exp-past": (
        ["token", "-userId", "a", "-channel", "b", "-exp", "5", "-secret", "x" * 32],
        2,
        "--exp 5 is not",
    ),
    "token-duration": (
        ["token", "-userId", "a", "-channel", "b", "--expires-in", "soon", "-secret", "x" * 32],
        2,
        "--expires-in 'soon' is not a duration",
    ),
    "token-duration-unix-time": (
        ["token", "-userId", "a", "-channel", "b", "--expires-in", "1800000000", "-secret", "x" * 32],
        2,
        "--expires-in '1800000000' is more than ten years",
    ),
    "token-exp-milliseconds": (
        ["token", "-userId", "a", "-channel", "b", "-exp", "1800000000000", "-secret", "x" * 32],
        2,
        "--exp 1.8e+12 is more than ten years from now",
    ),
    "token-duration-huge": (
        ["token", "-userId", "a", "-channel", "b", "--expires-in", "1" + "0" * 400, "-secret", "x" * 32],
        2,
        "is more than ten years: give a duration such as",
    ),
    "token-exp-huge": (
        ["token", "-userId", "a", "-channel", "b", "-exp", "1e300", "-secret", "x" * 32],
        2,
        "--exp 1e+300 is more than ten years from now: give a Unix time in seconds",
    ),
    "token-both": (
        ["token", "-userId", "a", "-channel", "b", "--expires-in", "1h", "-exp", "5", "-secret", "x" * 32],
        2,
        "--exp and --expires-in are both given",
    ),
    "token-empty-user": (["token", "-userId", "", "-channel", "b", "-secret", "x" * 32], 2, "userId is empty"),
    "token-no-channel": (["token", "--user-id", "a", "--secret", "x" * 32], 2, "give --channel or --pattern"),
    "B30-star-inside": (
        ["token", "--user-id", "a", "--pattern", "a*b", "--secret", "x" * 32],
        2,
        "patterns 'a*b' is not a pattern: write a prefix of channels and one '*' at the end",
    ),
    "B30-star-alone": (
        ["token", "--user-id", "a", "--pattern", "*", "--secret", "x" * 32],
        2,
        "or set SSEHUB_ALLOW_ALL_CHANNELS",
    ),
    "emit-nothing": (["emit", "--channel", "b"], 2, "give either --data or --payload"),
    "emit-url": (["emit", "--channel", "b", "--data", "x", "--control-url", "nonsense"], 2, "is not a URL such as"),
    "emit-port": (
        ["emit", "--channel", "b", "--data", "x", "--control-url", "http://127.0.0.1:99999"],
        2,
        "is not a URL such as",
    ),
    "emit-bracket": (
        ["emit", "--channel", "b", "--data", "x", "--control-url", "http://[::1"],
        2,
        "is not a URL such as",
    ),
    "emit-unix": (["emit", "--channel", "b", "--data", "x", "--control-url", "unix:"], 2, "is not a URL such as"),
    "emit-refused": (
        ["emit", "--channel", "b", "--data", "x", "--control-url", "http://127.0.0.1:1", "--retries", "0"],
        1,
        "can't be reached",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "message"), BAD.values(), ids=BAD.keys())
def test_error_is_one_line_with_an_exit_code(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "off.toml").write_text('control_bind = "off"')
    arguments = [argument.replace("{off}", str(tmp_path / "off.toml")) for argument in arguments]

    result = run(*arguments, **({} if "token" in arguments else {"SSEHUB_LOG_LEVEL": "error"}))

    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("ssehub: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "x" * 32 not in result.stderr


def test_f6_port_in_use_names_port_and_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--bind", "--control-bind"):
            result = run("--bind", "127.0.0.1:0", option, f"127.0.0.1:{port}", SSEHUB_LOG_LEVEL="error")

            assert result.returncode == 3
            assert f"can't listen on 127.0.0.1:{port}: the port is in use by " in result.stderr
            assert f"(process {os.getpid()})" in result.stderr
            assert result.stderr.count("\n") == 1


def test_token_is_printed_and_nothing_else() -> None:
    exp = int(time.time()) + 600
    for arguments in (["-exp", str(exp)], ["--expires-in", "10m"], ["--expires-in", "600"]):
        result = run("token", "-userId", "1234", "-channel", "test", *arguments, "-secret", SECRET)

        claims = Tokens(SECRET).verify(result.stdout.strip())

        assert (claims.user_id, claims.channels) == ("1234", ("test",))
        assert abs((claims.expires_at or 0) - exp) < 30
        assert result.stderr == ""


def test_secret_of_a_token_is_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")

    from_file = run("token", "--user-id", "a", "--channel", "b", "--secret-file", str(tmp_path / "secret"))
    from_env = run("token", "--user-id", "a", "--channel", "b", "--channel", "c", SSEHUB_SECRET=SECRET)

    assert Tokens(SECRET).verify(from_file.stdout.strip()).channels == ("b",)
    assert Tokens(SECRET).verify(from_env.stdout.strip()).channels == ("b", "c")


def test_token_for_patterns_is_printed() -> None:
    only = run("token", "--user-id", "a", "--pattern", "orders.*", "--pattern", "jobs.*", SSEHUB_SECRET=SECRET)
    every = run(
        *("token", "--user-id", "a", "--channel", "b", "--pattern", "*"),
        SSEHUB_SECRET=SECRET,
        SSEHUB_ALLOW_ALL_CHANNELS="true",
    )

    granted = [Tokens(SECRET).verify(each.stdout.strip()) for each in (only, every)]
    assert [claims.channels for claims in granted] == [(), ("b",)]
    assert [claims.patterns for claims in granted] == [("orders.*", "jobs.*"), ("*",)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-h"],
        ["-help"],
        ["serve", "-h"],
        ["token", "-help"],
        ["--help"],
        ["serve", "--help"],
        ["token", "--help"],
        ["emit", "--help"],
        ["revoke", "--help"],
        ["log", "--help"],
        ["bench", "--help"],
        *([name, "-h"] for name in ("listen", "disconnect", "check", "version", "key")),
        *(["runs", name, "-h"] for name in ("list", "show", "stop", "delete")),
        ["--version"],
    ],
)
def test_help_is_printed(arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.returncode == 0 and result.stderr == ""
    assert "ssehub" in result.stdout


def test_help_shows_options_in_sections_with_variables_defaults_and_choices() -> None:
    text = " ".join(run("serve", "--help").stdout.split())

    assert "--log-level [debug|info|warning|error]" in text and "--log-format [text|json]" in text
    assert "[env var: SSEHUB_LOG_LEVEL; default: info]" in text
    assert "[env var: SSEHUB_LOG_FORMAT; default: text]" in text
    assert "--user-limit-policy [replace|refuse]" in text and "--comeback-end [auto|clean|cut]" in text
    assert "[env var: SSEHUB_BIND; default: 127.0.0.1:8000]" in text
    sections = ["Options:", "Tokens:", "TLS:", "Streams:", "Limits of streams:", "Resuming:", "Runs:", "Redis:"]
    places = [text.index(section) for section in sections]
    assert places == sorted(places)


def test_emit_publishes_to_a_running_hub_and_prints_the_id(
    start_hub: Callable[..., RunningHub], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(CONTROL_KEY)
    hub = start_hub("--control-key", CONTROL_KEY)
    where = ["--channel", "chat", "--control-url", hub.control_url]

    plain = run("emit", *where, "--control-key-file", str(tmp_path / "key"), "--data", "-", stdin="from\nstdin")
    raw = run(
        "emit", *where, "--payload", "data: raw", "--user-id", "a", "--user-id", "b", SSEHUB_CONTROL_KEY=CONTROL_KEY
    )
    refused = run("emit", *where, "--data", "x")
    bad = run("emit", *where, "--data", "x", "--event", "stream-x", SSEHUB_CONTROL_KEY=CONTROL_KEY)

    assert plain.stdout.endswith("\n") and "-" in plain.stdout and raw.returncode == 0
    assert refused.returncode == bad.returncode == 1
    assert "the control key is missing or wrong: give --control-key-file" in refused.stderr
    assert "event 'stream-x' begins with" in bad.stderr and bad.stderr.count("\n") == 1


def test_revoke_ends_access_and_takes_that_back(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    where = ["--control-url", hub.control_url]
    token = hub.token()

    def status() -> int:
        return httpx.head(f"{hub.url}/events/", params={"token": token}).status_code

    by_token = run("revoke", *where, "--token", "-", stdin=f"{token}\n")
    by_user = run("revoke", *where, "--userId", "alex")
    both = run("revoke", *where, "--user-id", "alex", "--everyone")
    statuses = [status()]
    taken_back = [
        run("revoke", *where, "--take-back", *whose, stdin=token)
        for whose in (["--user-id", "alex"], ["--token", "-"], ["--user-id", "kim"])
    ]
    statuses.append(status())

    assert by_token.stdout.endswith("\n") and "-" in by_token.stdout and by_user.returncode == 0
    assert "memory://" in by_user.stderr and by_user.stderr.count("\n") == 1
    assert both.returncode == 1 and "responded with 400: userId and everyone given" in both.stderr
    assert [result.returncode for result in taken_back] == [0, 0, 1] and "404" in taken_back[2].stderr
    assert statuses == [401, 200]


def test_emit_reports_that_its_body_was_too_large(start_hub: Callable[..., RunningHub]) -> None:
    hub = start_hub()
    where = ["--channel", "chat", "--control-url", hub.control_url]

    result = run("emit", *where, "--data", "-", stdin="x" * 10_000_000)

    assert result.returncode == 1
    assert "responded with 413" in result.stderr and result.stderr.count("\n") == 1


def test_no_require_exp_accepts_tokens_that_never_expire(start_hub: Callable[..., RunningHub]) -> None:
    without_exp = jwt.encode({"userId": "alex", "channel": "chat"}, SECRET)
    strict, lenient = start_hub(), start_hub("--no-require-exp")

    statuses = [
        httpx.head(f"{hub.url}/events/", params={"token": without_exp}).status_code for hub in (strict, lenient)
    ]

    assert statuses == [401, 200]


@pytest.fixture
def odd_server() -> Iterator[str]:
    """The URL of a server that is not a hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"error": "no\nsuch thing"}).encode()
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/sub/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_emit_reports_what_another_server_answers(odd_server: str) -> None:
    result = run("emit", "--channel", "b", "--data", "x", "--control-url", odd_server)

    assert result.returncode == 1
    assert "responded with 404: no such thing" in result.stderr and result.stderr.count("\n") == 1
