"""Watched files: what counts as a change, when it is taken, and what happens to a file that can't be used."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import until
from ssehub.errors import ConfigError
from ssehub.watched import LOOK_SECONDS, MAX_FILE_BYTES, SETTLE_SECONDS, WatchedFile, watch

pytestmark = pytest.mark.anyio

Change = Callable[[Path, str], None]


class Watch:
    """A watched file, its clock, and the contents that were put to use. `bad` is refused."""

    def __init__(self, path: Path, *, content: str | None = None) -> None:
        self.used: list[str] = []
        self.seconds = 0.0
        self.file = WatchedFile(path, "key_file", self._apply, content=content, monotonic=lambda: self.seconds)

    def _apply(self, content: str) -> str:
        if content == "a bug":
            raise KeyError(content)
        if "bad" in content or not content:
            raise ConfigError("there is no key in it")
        self.used.append(content)
        return f"{len(content)} bytes"

    async def look(self) -> float:
        """Look once, then let the time pass until the next look."""
        wait = await self.file.look()
        self.seconds += wait
        return wait

    async def settle(self) -> None:
        """Look as often as a change needs to be seen and taken."""
        for _ in range(3):
            await self.look()


def write_in_place(path: Path, content: str) -> None:
    path.write_text(content)


def replace_by_rename(path: Path, content: str) -> None:
    new = path.with_name("new")
    new.write_text(content)
    new.rename(path)


def replace_with_the_old_times(path: Path, content: str) -> None:
    status = path.stat()
    path.write_text(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


CHANGES: dict[str, Change] = {
    "in-place": write_in_place,
    "renamed": replace_by_rename,
    "same-size-and-time": replace_with_the_old_times,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("one")
    return path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_b22_changed_file_is_read_again(path: Path, change: Change, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watch(path)
    await watched.settle()

    with caplog.at_level(logging.INFO):
        change(path, "two")
        await watched.settle()

    assert watched.used == ["one", "two"]
    assert caplog.messages == [f"key_file {path} has been read again: 3 bytes"]


async def test_change_right_after_the_first_read_is_seen_whatever_the_clock_of_the_file_system(path: Path) -> None:
    watched = Watch(path)

    replace_with_the_old_times(path, "two")  # may be in the same tick, so that nothing differs but the content
    await watched.settle()

    assert watched.used == ["one", "two"]


async def test_b22_symbolic_link_that_switches_is_seen_as_kubernetes_does_it(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(version)
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "key").symlink_to("..data/key")
    watched = Watch(tmp_path / "key")
    await watched.settle()

    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    await watched.settle()

    assert watched.used == ["one", "two"]


async def test_b22_half_written_file_is_not_taken(path: Path) -> None:
    watched = Watch(path)
    await watched.settle()

    with path.open("w") as file:
        for part in ("a key ", "that is ", "written ", "slowly"):
            file.write(part)
            file.flush()
            assert await watched.look() == SETTLE_SECONDS
            assert watched.used == ["one"]
    await watched.settle()

    assert watched.used == ["one", "a key that is written slowly"]


async def test_looks_in_quick_succession_do_not_take_a_file_before_it_has_settled(path: Path) -> None:
    watched = Watch(path)
    await watched.settle()

    write_in_place(path, "two")
    for _ in range(5):  # as if several loops looked
        await watched.file.look()

    assert watched.used == ["one"]


async def test_unchanged_file_is_looked_at_and_not_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watch(path)
    await watched.settle()
    os.utime(path)

    with caplog.at_level(logging.INFO):
        await watched.settle()
        assert await watched.look() == LOOK_SECONDS

    assert (watched.used, caplog.messages) == (["one"], [])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "refused": (lambda path: path.write_text("bad"), ": there is no key in it"),
    "bug": (lambda path: path.write_text("a bug"), ": unexpected KeyError"),
    "empty": (lambda path: path.write_text(""), ": there is no key in it"),
    "missing": (lambda path: path.unlink(), " can't be read: No such file or directory"),
    "not-utf-8": (lambda path: path.write_bytes(b"\xff"), " can't be read: it is not UTF-8"),
    "large": (lambda path: path.write_bytes(b"x" * (MAX_FILE_BYTES + 1)), " has more than 1048576 bytes"),
    "folder": (replace_by_folder, " can't be read: Is a directory"),
    "pipe": (replace_by_pipe, " is not a regular file"),
    "loop": (replace_by_link_to_itself, " can't be read: Too many levels of symbolic links"),
}


@pytest.mark.parametrize(("break_it", "message"), BROKEN.values(), ids=BROKEN.keys())
async def test_b22_broken_file_keeps_what_was_read_before_with_one_error_line_until_it_works_again(
    path: Path, break_it: Callable[[Path], object], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watch(path)
    await watched.settle()

    with caplog.at_level(logging.INFO):
        break_it(path)
        for _ in range(3):
            await watched.settle()

    assert caplog.messages == [f"key_file {path}{message}; what was read before stays in use"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert (watched.used, watched.file.content, watched.file.failures) == (["one"], "one", 1)
    assert watched.file.problem == f"key_file {path}{message}"
    caplog.clear()
    remove(path)
    write_in_place(path, "one")
    with caplog.at_level(logging.INFO):
        await watched.settle()
    assert caplog.messages == [f"key_file {path} has been read again: no change"]
    assert watched.file.problem is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    # A first read waits for what comes through a pipe, and a bug may show.
    [case for name, case in BROKEN.items() if name not in ("pipe", "bug")],
    ids=[name for name in BROKEN if name not in ("pipe", "bug")],
)
async def test_file_that_is_broken_at_the_start_is_refused(
    path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(path)

    with pytest.raises(ConfigError) as caught:
        Watch(path)

    assert str(caught.value) == f"key_file {path}{message}"


@pytest.mark.parametrize("content", ["bad", None], ids=["refused", "missing"])
async def test_look_after_a_reload_does_not_say_again_what_is_wrong(
    content: str | None, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watch(path)
    remove(path) if content is None else write_in_place(path, content)

    await watched.file.reload()
    await watched.settle()

    assert (len(caplog.records), watched.file.failures) == (1, 1)
    await watched.file.reload()  # somebody asks again
    write_in_place(path, "bad, too")
    await watched.settle()
    assert (len(caplog.records), watched.file.failures) == (3, 3)


async def test_reload_reads_at_once_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watch(path)

    with caplog.at_level(logging.INFO):
        await watched.file.reload()
        write_in_place(path, "two")
        await watched.file.reload()
        write_in_place(path, "bad")
        await watched.file.reload()
        await watched.file.reload()

    assert watched.used == ["one", "two"]
    assert caplog.messages == [
        f"key_file {path} has been read again: no change",
        f"key_file {path} has been read again: 3 bytes",
        *[f"key_file {path}: there is no key in it; what was read before stays in use"] * 2,
    ]
    assert watched.file.failures == 2


async def test_content_of_another_process_stands_in_for_a_file_that_is_broken_now(path: Path) -> None:
    write_in_place(path, "bad")

    watched = Watch(path, content="from the parent")
    await watched.settle()
    assert watched.used == ["from the parent"]
    write_in_place(path, "two")
    await watched.settle()

    assert watched.used == ["from the parent", "two"]


async def test_pipe_is_read_once_and_never_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one",))
    writer.start()

    watched = Watch(path)
    writer.join()
    async with asyncio.timeout(5):  # opening it would block until somebody writes
        await watched.settle()
        await watched.file.reload()

    assert watched.used == ["one"]


async def test_watch_takes_a_change_in_real_time(path: Path) -> None:
    used: list[str] = []

    def use(content: str) -> str:
        used.append(content)
        return ""

    file = WatchedFile(path, "key_file", use)
    watching = asyncio.create_task(watch([file]))
    try:
        write_in_place(path, "two")

        await until(lambda: used == ["one", "two"], 30)
    finally:
        watching.cancel()


async def test_watch_goes_on_after_no_thread_could_be_started(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ssehub.watched.LOOK_SECONDS", 0.02)
    used: list[str] = []

    def use(content: str) -> str:
        used.append(content)
        return ""

    file = WatchedFile(path, "key_file", use)
    loop, without_threads = asyncio.get_running_loop(), ThreadPoolExecutor()
    without_threads.shutdown()
    loop.set_default_executor(without_threads)
    watching = asyncio.create_task(watch([file]))
    try:
        await until(lambda: "key_file can't be looked at now: " in caplog.text, 10)
        loop.set_default_executor(ThreadPoolExecutor(1))
        write_in_place(path, "two")

        await until(lambda: used == ["one", "two"], 30)
    finally:
        watching.cancel()
