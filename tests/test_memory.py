"""How much memory the process uses and may use, and what a hub does when it is short. F11."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from conftest import ERROR_LINES, StartHub, report, wait_until
from fakes import FakeSink
from hubs import engine_of, join, manual_hub, publish
from ssehub.config import load_config
from ssehub.fanout.history import MIN_BYTES
from ssehub.memory import STATM, MemoryMeter, available_bytes
from ssehub.server.apps import max_memory_bytes
from ssehub.settings import Memory
from streams import RawStream, get, listen

SOAK = "SOAK" in os.environ
MACHINE_BYTES = psutil.virtual_memory().total
GIB = 2**30

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not STATM.exists(), reason="memory is only watched on Linux"),
]


# Reading


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, MACHINE_BYTES, id="no cgroups"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1_000, id="v2, in a container"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "2000",
                "sys/fs/cgroup/a/b/memory.max": "max",
            },
            2_000,
            id="v2, limited further up",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, MACHINE_BYTES, id="v2, unlimited"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/docker/x\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n",
            },
            3_000,
            id="v1, in a container that sees the path of the host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4000\n",
            },
            4_000,
            id="v1",
        ),
    ],
)
def test_memory_available_is_that_of_the_machine_or_the_cgroup(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)

    assert available_bytes(tmp_path) == pytest.approx(expected, rel=0.01)


def test_resident_memory_is_read() -> None:
    meter = MemoryMeter(GIB)

    before = meter.read()
    with mmap.mmap(-1, 50 * 2**20) as ballast:  # not from the heap, which may have this much to give
        for place in range(0, len(ballast), mmap.PAGESIZE):
            ballast[place] = 1
        after = meter.read()
        resident = psutil.Process().memory_info().rss

    assert before.limit == GIB
    assert 50 * 2**20 * 0.9 < after.used - before.used < 50 * 2**20 * 1.5
    assert after.used == pytest.approx(resident, rel=0.1)


READING_UNDER_A_LIMIT = """
import resource, sys
from ssehub.memory import MemoryMeter
kind = getattr(resource, sys.argv[1])
resource.setrlimit(kind, (2**30, 2**30))
meter = MemoryMeter(2**40)
ballast = [b"x" * (10_000 + number % 100) for number in range(10_000)]
full = meter.read()
del ballast[::2]
print(*full, *meter.read_closely())
"""


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_address_space_and_data_count_where_the_shell_limits_them(kind: str) -> None:
    command = [sys.executable, "-c", READING_UNDER_A_LIMIT, kind]

    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)

    used, limit, used_after, limit_after = map(int, result.stdout.split())
    assert limit == limit_after == int(0.8 * GIB)
    assert used > 100_000_000
    assert used - used_after > 40_000_000  # memory that was freed and can be used again


READING_WITH_TWO_LIMITS = """
import resource
from ssehub.memory import MemoryMeter
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
ballast = [b"x" * (10_000 + number % 100) for number in range(10_000)]
del ballast[::2]
meter = MemoryMeter(2**40)
without_free = meter.read_closely()
with_free = meter.read()
resident = MemoryMeter(1).read().used
share = (without_free.used + with_free.used) / 2 / with_free.limit
max_bytes = int(resident / share)  # resident memory is nearest to its limit if free address space does not count
print(max_bytes, MemoryMeter(max_bytes).read().limit, MemoryMeter(max_bytes).read_closely().limit)
"""


def test_close_reading_leaves_out_free_memory_before_it_looks_for_the_nearest_limit() -> None:
    command = [sys.executable, "-c", READING_WITH_TWO_LIMITS]

    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)

    max_bytes, nearest, nearest_closely = map(int, result.stdout.split())
    assert nearest == int(0.8 * GIB)
    assert nearest_closely == max_bytes


@pytest.mark.parametrize("given", [None, 0])
def test_there_is_no_meter_without_a_limit(given: int | None) -> None:
    assert MemoryMeter.for_limit(given) is None


def test_limit_is_the_setting_or_a_share_of_what_is_available() -> None:
    available = available_bytes()
    assert available is not None

    assert max_memory_bytes(load_config({})) == int(available * 0.8)
    assert max_memory_bytes(load_config({"workers": 4})) == int(available * 0.8) // 4
    assert max_memory_bytes(load_config({"workers": 4, "max_memory_bytes": 123})) == 123
    assert max_memory_bytes(load_config({"max_memory_bytes": 0})) == 0


# A hub that is short of memory


@pytest.mark.usefixtures("unhurried_history")
async def test_hub_short_of_memory_is_full_and_evicts_history() -> None:
    async with manual_hub(max_memory_bytes=1) as hub:
        subscriber, sink = join(hub)
        first = (await publish(hub, *"abc"))[0]
        await hub.flush()
        was_full = hub.is_full

        await hub.pass_seconds(0.25)
        await publish(hub, "d")
        await hub.flush()
        late = join(hub, cursor=first)[1]

        assert not was_full and hub.is_full and hub.is_short_of_memory
        assert hub.statistics.memory_is_short and hub.statistics.memory_bytes > 10**6
        assert subscriber.reason is None and sink.data() == ["a", "b", "c", "d"]
        assert "too-old" in late.text


async def test_hub_short_of_memory_ends_the_largest_backlogs_by_audience() -> None:
    async with manual_hub(max_memory_bytes=1) as hub:
        reading = join(hub)[0]
        stopped = [join(hub, user, sink=FakeSink(reads=False))[0] for user in ("kim", "sam", "sam")]
        await publish(hub, "x" * 70_000)
        await hub.flush()

        await hub.pass_seconds(0.25)

        assert reading.reason is None
        assert [str(subscriber.reason) for subscriber in stopped] == ["slow"] * 3


async def test_only_as_many_backlogs_end_as_memory_is_missing() -> None:
    async with manual_hub() as hub:
        sizes = {"small": 70_000, "large": 500_000, "larger": 600_000}
        for user, size in sizes.items():
            for _ in range(2):
                join(hub, user, sink=FakeSink(reads=False))
            await hub.publish(channel="chat", user_id=user, data="x" * size)
        await hub.flush()
        backlogs = engine_of(hub).backlogs

        one, two = ([subscriber.user_id for subscriber in backlogs.furthest_behind(size)] for size in (1, 700_000))

        assert one == ["larger"] * 2
        assert two == ["larger"] * 2 + ["large"] * 2


@pytest.mark.usefixtures("unhurried_history")
async def test_history_keeps_to_its_reduced_size_until_it_may_grow_again() -> None:
    async with manual_hub() as hub:
        await publish(hub, *["x" * 500_000] * 10)
        history = engine_of(hub)._history
        before = history.bytes

        freed = history.shrink(before // 2, 0)
        reduced = history.bytes
        await publish(hub, *["x" * 500_000] * 10)
        kept = history.bytes
        history.regrow()
        await publish(hub, *["x" * 500_000] * 10)

        assert before // 2 <= freed == before - reduced
        assert kept <= reduced
        assert history.bytes > before


@pytest.mark.usefixtures("unhurried_history")
async def test_history_of_another_log_keeps_to_the_reduced_size() -> None:
    async with manual_hub() as hub:
        await publish(hub, *["x" * 500_000] * 10)
        engine = engine_of(hub)
        engine._history.shrink(engine._history.bytes // 2, 0)
        reduced = engine._history.bytes

        await engine.start_over(engine.head)
        await publish(hub, *["x" * 500_000] * 10)

        assert 0 < engine._history.bytes <= reduced


@pytest.mark.usefixtures("unhurried_history")
async def test_history_that_was_shrunk_to_nothing_retains_the_next_events() -> None:
    async with manual_hub() as hub:
        await publish(hub, *"abc")
        history = engine_of(hub)._history
        history.shrink(history.bytes, 0)
        left = len(history)

        first = (await publish(hub, "d", "e"))[0]
        await hub.flush()
        late = join(hub, cursor=first)[1].data()
        await publish(hub, *["x" * 500_000] * 10)

        assert left == 0
        assert late == ["e"]
        assert 0 < history.bytes <= MIN_BYTES


async def test_library_hub_watches_no_memory_unless_it_is_told_to() -> None:
    async with manual_hub() as hub:
        await hub.pass_seconds(1)

        assert hub.statistics.memory_limit_bytes == 0 and not hub.is_full
    with pytest.raises(Exception, match="max_memory_bytes -1: must be at least 0"):
        Memory(max_memory_bytes=-1)


# A process whose memory is limited


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("limit", ["--as", "--data"] if SOAK else ["--as"])
def test_f11_hub_under_a_memory_limit_refuses_streams_and_goes_on_publishing(limit: str, start_hub: StartHub) -> None:
    size, idle_count, events_after = (700_000_000, 2_000, 2_000) if SOAK else (400_000_000, 300, 300)
    bounds = ("--history-bytes", "2000000000", "--max-total-backlog-bytes", "2000000000", "--grace-seconds", "300")
    others = ("--max-connections", "4000", "--tcp-user-timeout-seconds", "300")
    hub = start_hub(*bounds, *others, prefix=("prlimit", f"{limit}={size}", "--nofile=10000"))
    idle_token, slow_token = hub.token("alex", "quiet"), hub.token("sam", "busy")
    slow = [listen(hub.port, slow_token, receive_buffer=4_096) for _ in range(40)]
    idle = [listen(hub.port, idle_token) for _ in range(idle_count)]
    refused = 0
    with httpx.Client(timeout=60) as http:

        def publish(data: str) -> None:
            body = {"userId": "*", "channel": "busy", "data": data}
            http.post(f"{hub.control_url}/emit/", data=body).raise_for_status()

        while not refused:
            for _ in range(30):
                publish("x" * 300_000)
            if hub.metric("ssehub_memory_short"):
                newcomer = RawStream(hub.port, get(f"/events/?token={idle_token}"))
                newcomer.read_until(b"retry:")
                newcomer.close()
                refused += b"stream-busy" in newcomer.bytes
        for _ in range(events_after):
            publish("x" * 300_000)
    hub.emit(channel="quiet", data="still here")
    for stream in idle:
        stream.read_until(b"still here")
        stream.close()
    memory = hub.memory_bytes()
    for stream in slow:
        stream.close()
    wait_until(lambda: not hub.metric("ssehub_memory_short"), 30)
    listen(hub.port, idle_token).close()
    report(f"{limit} {size >> 20} MiB, rss {memory >> 20} MiB")

    assert hub.metric('ssehub_endings_total{reason="slow"}') == 40
    assert "memory is short" in hub.log and "memory is sufficient again" in hub.log
    assert "MemoryError" not in hub.log and not ERROR_LINES.search(hub.log)


def test_f11_hub_over_its_limit_from_the_start_publishes_and_opens_no_stream(start_hub: StartHub) -> None:
    hub = start_hub("--max-memory-bytes", "1000000")
    token = hub.token()
    wait_until(lambda: hub.metric("ssehub_memory_short"))
    stream = RawStream(hub.port, get(f"/events/?token={token}"))

    busy = stream.read_to_end()

    assert re.fullmatch(rb"event: stream-busy\ndata: {}\nretry: \d+\nid: \S+\n\n", stream.body), busy
    assert hub.emit(data="goes on")
