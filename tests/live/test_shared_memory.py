"""Memory that a family shares, between hosts that have each a /dev/shm of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.kernel import lineage
from migrate.testbed import TestBed
from precopy.ids import Pid
from tests.live.journey import ROOT, Road
from tests.live.scenarios import harness
from tests.live.scenarios.harness import Scenario, tell_moved
from tests.live.stage import eventually

SHM = "/dev/shm"

# Workers that were forked, with a lock and a counter in an arena of multiprocessing (a
# deleted file), queues with semaphores (deleted files), and shared memory by its name.
POOL = """
import hashlib, multiprocessing as mp, os, sys, time
from multiprocessing import shared_memory

STRIPES, BYTES = 12, 1 << 17

def begin(name, count):
    global memory, counter
    memory, counter = shared_memory.SharedMemory(name), count

def work(stripe):
    at = stripe * BYTES
    with counter.get_lock():
        counter.value += 1
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    data = hashlib.shake_256(memory.buf[at:at + BYTES]).digest(BYTES)
    memory.buf[at:at + BYTES] = data
    with counter.get_lock():
        counter.value += 1
    return hashlib.sha256(data).hexdigest()

if __name__ == "__main__":
    mp.set_start_method("fork")
    memory = shared_memory.SharedMemory(create=True, size=STRIPES * BYTES)
    for stripe in range(STRIPES):
        seed = hashlib.shake_256(b"%d" % stripe).digest(BYTES)
        memory.buf[stripe * BYTES:(stripe + 1) * BYTES] = seed
    counter = mp.Value("q", 0)
    with mp.Pool(3, begin, (memory.name, counter)) as pool:
        parts = pool.map(work, range(STRIPES), chunksize=1)
    whole = hashlib.sha256(memory.buf[:STRIPES * BYTES]).hexdigest()
    memory.close()
    memory.unlink()
    print(*parts, whole, counter.value, file=open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def between(folder: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    shared = [ROOT, folder, harness.build_folder()]
    with TestBed(shared=shared, private=("/tmp", "/run", SHM)) as bed:
        a, b = bed.host("a"), bed.host("b")
        yield Road(a, b, {host.name: host.agent() for host in (a, b)})


@pytest.mark.parametrize("tracker", ["auto", "everything"])
def test_there_and_back_again(tracker: str, between: Road, folder: Path) -> None:
    """What has a name in /dev/shm goes with its name, and leaves none behind."""
    place = folder / f"back-{tracker}"
    place.mkdir()
    a, b, options = between.a, between.b, ["--tracker", tracker]
    with Scenario("shared_memory", place, host=a) as scenario:
        ready = scenario.ready()
        between.move(ready.pid, a, b, options).arrived()
        assert scenario.process.wait() == -9
        assert a.run(["ls", SHM]).stdout == ""
        assert b.run(["ls", SHM]).stdout == f"shared_memory.named.{ready.pid}\n"
        back = between.move(ready.pid, b, a, options).arrived()
        assert b.run(["ls", SHM]).stdout == ""
        with between.arrived(back, a) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []
            assert a.wait_exit(arrived.pid_inside, 30) == 0


def test_a_name_that_is_taken(between: Road, folder: Path) -> None:
    """Whoever has it keeps it; the family runs on, and goes when it is free."""
    place = folder / "taken"
    place.mkdir()
    a, b = between.a, between.b
    with Scenario("shared_memory", place, host=a) as scenario:
        ready = scenario.ready()
        other = f"{SHM}/shared_memory.named.{ready.pid}"
        b.run(["sh", "-c", f"echo theirs > {other}"])
        refused = between.move(ready.pid, a, b)
        assert refused.exit_code == 5
        assert f"The shared memory {other} cannot be made here" in refused.stderr
        assert b.run(["cat", other]).stdout == "theirs\n"
        b.run(["rm", other])
        report = between.move(ready.pid, a, b).arrived()
        with between.arrived(report, b) as arrived:
            tell_moved(arrived.pid, ready)
            assert scenario.verdict() == []


def test_a_pool_of_workers(between: Road, folder: Path) -> None:
    """Moved in mid-work it comes to what it comes to without."""
    program, said = folder / "pool.py", folder / "said"
    program.write_text(POOL)
    go, alone, result = folder / "go", folder / "alone", folder / "result"
    with said.open("wb") as log:
        process = between.a.popen(
            ["/usr/bin/env", "python3", str(program), str(go), str(result)],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    # Itself, three workers, and who looks after what they share.
    eventually(lambda: len(lineage.family(Pid(process.pid))) >= 5, "all have begun")
    with process:
        report = between.move(process.pid_inside, between.a, between.b).arrived()
        assert process.wait() == -9
    assert len(report.processes) == 5
    go.touch()
    pid = report.processes[0].destination_pid
    assert pid is not None
    assert between.b.wait_exit(pid, 60) == 0, said.read_text()
    command = ["/usr/bin/env", "python3", str(program), str(go), str(alone)]
    done = between.b.run(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert result.read_text() == alone.read_text()
    assert result.read_text().endswith(" 24\n") and os.path.getsize(result) > 800
    assert between.b.run(["ls", SHM]).stdout == ""
