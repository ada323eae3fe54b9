"""In the freeze, what the destination holds is what the source holds, page for page.

The mover is held after the destination said that it has everything: both copies stand
still then, and nobody has been let go. All pages that either has of its own are read
from both.
"""

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from migrate import failpoints
from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.kernel import probes, procfs
from migrate.testbed import HostProcess
from precopy.ids import Pid
from precopy.page_set import PageSet
from precopy.pagemap import Pagemap
from precopy.task_memory import TaskMemory
from tests.live.journey import ROOT, Moved, Road, road

BUSY_PYTHON: Final = """
import hashlib, itertools, os, sys, threading
folder = sys.argv[1]
known, turns = {}, 0
def digest(n):
    return hashlib.blake2b(b"%d" % n).digest() * 40
def count(step):
    for n in itertools.count(0, step):
        turns_of[step] = n
        if done.wait(0.01):
            return
turns_of, done = {}, threading.Event()
threads = [threading.Thread(target=count, args=[step]) for step in (1, 2)]
for thread in threads:
    thread.start()
open(os.path.join(folder, "begun"), "w").close()
while not os.path.exists(os.path.join(folder, "enough")):
    known[turns % 1000] = turns, digest(turns)
    turns += 1
done.set()
for thread in threads:
    thread.join()
wrong = [n for n, found in known.values() if found != digest(n)]
with open(os.path.join(folder, "result"), "w") as result:
    result.write(f"{len(wrong)} wrong, {sorted(turns_of)}")
"""

# Their alignment as well (linux/rseq.h).
RSEQ_BYTES: Final = 32
LOOK_AGAIN_S: Final = 0.01

TRACKERS: Final[dict[str, Callable[[], probes.Finding]]] = {
    "uffd-wp": probes.userfaultfd_wp_async,
    "soft-dirty": probes.soft_dirty,
    "everything": lambda: probes.Finding(True),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's workload, compiled."""
    return workload.compiled(tmp_path_factory.mktemp("workload"))


@pytest.fixture(scope="module")
def between(program: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(program.parent) as made:
        yield made


@pytest.fixture
def folder(program: Path) -> Iterator[Path]:
    """Empty, and in sight of both hosts."""
    made = program.parent / "run"
    made.mkdir()
    yield made
    for file in made.iterdir():
        file.unlink()
    made.rmdir()


@dataclass(frozen=True, slots=True)
class Images:
    """What was found while both copies stood still."""

    compared: int  # pages
    differ: list[str]


def images(here: Pid, there: Pid) -> Images:
    """Compare them; all of it is private memory."""
    space = procfs.read_maps(here)
    ours = space.our_ranges()
    pages = own(here, ours) | own(there, ours)
    differ: list[str] = []
    areas = 0
    with TaskMemory(here) as left, TaskMemory(there) as right:
        for start, end in pages:
            a, b = left.read(start, end - start), right.read(start, end - start)
            if a == b:
                continue
            for at in range(0, end - start, RSEQ_BYTES):
                pair = a[at : at + RSEQ_BYTES], b[at : at + RSEQ_BYTES]
                if pair[0] == pair[1]:
                    continue
                if all(map(is_rseq, pair)):
                    areas += 1
                else:
                    differ.append(f"{start + at:#x} in {space.find(start + at)}")
    assert areas <= len(procfs.threads(here))
    return Images(pages.pages, differ)


def is_rseq(words: bytes) -> bool:
    """Whether that may be what the kernel keeps current for a thread: rseq(2).

    The number of its CPU, twice or not yet; no critical section; no flags.
    """
    start, cpu, section, flags = struct.unpack_from("<IIQI", words)
    cpus = os.cpu_count() or 1
    return start < cpus and cpu in (start, 0xFFFFFFFF) and section == flags == 0


def own(pid: Pid, ranges: PageSet) -> PageSet:
    with Pagemap(pid) as pagemap:
        return pagemap.own(ranges)


def moved(
    between: Road, process: HostProcess, folder: Path, tracker: str
) -> tuple[Images, Moved]:
    """Move it, and compare when the destination has all and nobody was let go."""
    path, said = folder / "held", folder / "said"
    armed = {failpoints.VARIABLE: f"source.go.before_journal=tell:{path}"}
    to = between.address(between.b)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with between.a.popen(
            [
                *(sys.executable, "-m", "migrate", "--to", to, "--json"),
                *("--tracker", tracker, str(process.pid_inside)),
            ],
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **armed},
            cwd=ROOT,
        ) as mover:
            with (
                reached(listener, mover, said),
                between.b.process(process.pid_inside) as copy,
            ):
                found = images(Pid(process.pid), Pid(copy.pid))
            assert mover.stdout is not None
            report = json.loads(mover.stdout.read())
            return found, Moved(mover.wait(), report, said.read_text())


def reached(listener: socket.socket, mover: HostProcess, said: Path) -> socket.socket:
    """The mover, held; it goes on when this is closed."""
    listener.settimeout(LOOK_AGAIN_S)  # not inherited by what is accepted
    while True:
        try:
            held, _ = listener.accept()
        except TimeoutError:
            assert mover.is_alive(), said.read_text()
        else:
            # Closed with something unread, it would be a broken connection.
            held.recv(100)
            return held


def told(name: str, tracker: str, found: Images, done: Moved) -> None:
    """One line for people, of a move that must have gone well."""
    report = done.arrived()
    assert report.tracker == tracker
    assert report.downtime_s is not None
    pauses = [round(1000 * record.pause_s, 1) for record in report.rounds]
    sent = [record.pages for record in report.rounds]
    print(
        f"{os.uname().release} {name} by {tracker}: {found.compared} pages equal; "
        f"pages per round {sent}; paused {pauses} ms; "
        f"downtime {1000 * report.downtime_s:.0f} ms in {report.total_s:.1f} s"
    )


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_workload(between: Road, program: Path, folder: Path, tracker: str) -> None:
    """It writes all the time; afterwards it finds no fault in itself."""
    if not (works := TRACKERS[tracker]()):
        pytest.skip(works.why_not)
    shape = Shape(size_mib=8, rate_mib_s=2)
    process, seen = workload.start(shape, program=program, host=between.a)
    seen.close()
    assert isinstance(process, HostProcess)
    with process:
        found, done = moved(between, process, folder, tracker)
    assert found.compared > 2048
    assert found.differ == []
    told("workload", tracker, found, done)
    with between.arrived(done.arrived(), between.b) as arrived:
        with Workload(arrived.pid) as after:
            assert after.verify(), after.status().faults
            after.quit()
        assert between.b.wait_exit(arrived.pid_inside, 60) == 0


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_python(between: Road, folder: Path, tracker: str) -> None:
    """Three threads, and a dictionary of what it can compute again."""
    if not (works := TRACKERS[tracker]()):
        pytest.skip(works.why_not)
    os.mkfifo(folder / "begun")
    with between.a.popen([sys.executable, "-c", BUSY_PYTHON, str(folder)]) as process:
        # Its end comes when the program has opened it and closed it again.
        (folder / "begun").read_bytes()
        found, done = moved(between, process, folder, tracker)
    assert found.compared > 1000
    assert found.differ == []
    told("Python", tracker, found, done)
    with between.arrived(done.arrived(), between.b) as arrived:
        (folder / "enough").touch()
        assert between.b.wait_exit(arrived.pid_inside, 60) == 0
    assert (folder / "result").read_text() == "0 wrong, [1, 2]"
