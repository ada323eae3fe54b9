"""Writes that outrun the link, a capped link and packed pages: as was asked for."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.brake import STEPS
from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.report import Report
from migrate.testbed import Host, HostProcess
from precopy.ids import Pid
from precopy.task_memory import TaskMemory
from tests.live.journey import Road, road

MIB = 1 << 20
# At this rate a writer of 60 MiB/s is far too fast.
CAP_BYTES_S = 20_000_000
STALLS = ("--bandwidth", "20MB/s", "--downtime-limit", "100")
FAST = Shape(size_mib=24, rate_mib_s=60)

# Says where its memory is, and stands by.
TEXT_MIB = 12
TEXT = f"""
import ctypes, os, signal
text = bytearray(b"".join(b"line %d of a text\\n" % n for n in range({TEXT_MIB} << 16)))
place = ctypes.addressof(ctypes.c_char.from_buffer(text))
os.write(1, b"%d %d\\n" % (place, len(text)))
os.close(0); os.close(1); os.close(2)
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's workload, compiled."""
    return workload.compiled(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="module")
def between(program: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(program.parent) as made:
        yield made


@contextmanager
def writing(shape: Shape, program: Path, host: Host) -> Iterator[HostProcess]:
    process, seen = workload.start(shape, program=program, host=host)
    seen.close()
    assert isinstance(process, HostProcess)
    with process:
        yield process


def is_well(between: Road, report: Report) -> Workload:
    """Let it verify itself over there, and end."""
    arrived = between.arrived(report, between.b)
    with arrived, Workload(arrived.pid) as after:
        assert after.verify(), after.status().faults
        after.quit()
        assert between.b.wait_exit(arrived.pid_inside, 30) == 0
    return after


def test_a_writer_that_is_too_fast_is_slowed_down(between: Road, program: Path) -> None:
    """By steps, within bounds, told in the report and progress, and unharmed."""
    with writing(FAST, program, between.a) as process:
        moved = between.move(
            process.pid_inside, between.a, between.b, [*STALLS, "--progress", "jsonl"]
        )
    report = moved.arrived()
    rounds = report.rounds
    assert 4 <= len(rounds) <= 32
    # The first look, and then nothing until the stall is seen.
    assert rounds[0].pause_s > 0.0
    assert rounds[1].pause_s == rounds[2].pause_s == 0.0
    braked = [record for record in rounds[1:] if record.pause_s]
    assert braked, rounds
    told = [line for line in moved.stderr.splitlines() if '"slowing_down"' in line]
    shares = [f'"share": {share}' for share in STEPS]
    assert [share in line for share, line in zip(shares, told, strict=False)]
    # Never longer than its share; what began in one round may be told in the next.
    stopped_s = sum(record.pause_s for record in braked)
    assert stopped_s <= max(STEPS) * sum(record.duration_s for record in rounds) + 0.1
    is_well(between, report)


def test_a_writer_that_is_too_fast_is_stopped_and_copied(
    between: Road, program: Path
) -> None:
    """After rounds that have shown that it does not help; nobody slows it down."""
    with writing(FAST, program, between.a) as process:
        report = between.move(
            process.pid_inside,
            between.a,
            between.b,
            [*STALLS, "--on-stall", "stop-and-copy"],
        ).arrived()
    first_look, *later = report.rounds
    assert first_look.pause_s > 0.0
    assert not any(record.pause_s for record in later)
    is_well(between, report)


def test_a_writer_that_is_too_fast_stays(between: Road, program: Path) -> None:
    """And the figures say why."""
    with writing(FAST, program, between.a) as process:
        moved = between.move(
            process.pid_inside, between.a, between.b, [*STALLS, "--on-stall", "abort"]
        )
        assert moved.exit_code == 6
        assert "writes faster than the link carries: after " in moved.stderr
        assert "and 0.100 s are allowed. It wrote to " in moved.stderr
        with Workload(process.pid) as here:
            assert here.verify(), here.status().faults
            here.quit()
        assert process.wait() == 0


@pytest.mark.parametrize("on_stall", ["throttle", "stop-and-copy"])
def test_so_many_rounds_and_two_more(
    between: Road, program: Path, on_stall: str
) -> None:
    """Those right before the freeze send what was written since."""
    with writing(FAST, program, between.a) as process:
        options = [*STALLS, "--max-rounds", "1", "--on-stall", on_stall]
        report = between.move(
            process.pid_inside, between.a, between.b, options
        ).arrived()
    assert len(report.rounds) == 3
    is_well(between, report)


def test_the_cap_holds(between: Road, program: Path) -> None:
    """What the first round sent cannot have gone faster, whatever the machine does."""
    with writing(Shape(size_mib=16), program, between.a) as process:
        report = between.move(
            process.pid_inside, between.a, between.b, ["--bandwidth", "20MB/s"]
        ).arrived()
    first = report.rounds[0]
    assert first.bytes_wire > 16 * MIB
    # At once: what the bucket holds, and a batch on credit.
    assert first.duration_s >= (first.bytes_wire - 2.5 * MIB) / CAP_BYTES_S
    is_well(between, report)


@pytest.mark.parametrize("compress", ["none", "auto", "zstd", "zstd:1"])
def test_packed_or_not_it_arrives_equal(between: Road, compress: str) -> None:
    """A text, which packs well, over a link where that helps."""
    command = [sys.executable, "-c", TEXT]
    with between.a.popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        place, length = map(int, process.stdout.readline().split())
        before = content(process.pid, place, length)
        report = between.move(
            process.pid_inside,
            between.a,
            between.b,
            ["--compress", compress, "--bandwidth", "40MB/s"],
        ).arrived()
    with between.arrived(report, between.b) as arrived:
        assert content(arrived.pid, place, length) == before
        arrived.kill()
    packed = compress.startswith("zstd")
    assert packed == (report.bytes_wire < report.bytes_raw / 2) or compress == "auto"


def content(pid: int, place: int, length: int) -> bytes:
    with TaskMemory(Pid(pid)) as memory:
        return memory.read(place, length)
