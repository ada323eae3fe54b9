"""Programs that nobody wrote for us: moved in mid-work, their result is the same."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrate.testbed import Host, HostProcess
from tests.live.journey import Road, road

TEXT_BYTES = 12 << 20
LINES = 3_000_000
# More by hand: the closing figures were made with ten.
TIMES = int(os.environ.get("MIGRATE_TEST_REPEAT", "1"))

SQLITE = """
import hashlib, os, sqlite3, sys, threading, time
folder = sys.argv[1]
stop = threading.Event()
beats = []
def beat():
    while not stop.is_set():
        began = time.monotonic()
        time.sleep(0.02)
        beats.append(time.monotonic() - began)
threads = [threading.Thread(target=beat) for _ in range(3)]
for thread in threads:
    thread.start()
log = open(os.path.join(folder, "log"), "w", buffering=1)
base = sqlite3.connect(os.path.join(folder, "base"))
base.execute("create table numbers (n integer, square integer)")
base.commit()
base.execute("begin immediate")
log.write("in the transaction\\n")
for n in range(400_000):
    base.execute("insert into numbers values (?, ?)", (n, n * n))
    if n % 20_000 == 0:
        log.write(f"{n}\\n")
        time.sleep(0.05)
base.commit()
stop.set()
for thread in threads:
    thread.join()
count, total = base.execute("select count(*), sum(square) from numbers").fetchone()
log.write(f"{count} {total}\\n")
assert min(beats) >= 0.0199, min(beats)
with open(os.path.join(folder, "result"), "w") as result:
    result.write(f"{count} {total}\\n")
"""


FUNCTION = """
unsigned f{n}(unsigned *a, unsigned k) {{
    unsigned s = {n};
    for (unsigned i = 0; i < k; i++) {{
        s = s * 31 + a[i] ^ (s >> {n} % 31);
        if (s % 7 == {n} % 7)
            a[i] = s + i;
        switch (s & 3) {{ case 0: s++; break; case 1: a[k - i] ^= s; break; }}
    }}
    return s;
}}"""


@dataclass(frozen=True, slots=True)
class Material:
    """What the programs work on, the same for all tests."""

    folder: Path
    text: Path
    lines: Path


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A large text that compresses, and many lines in no order."""
    folder = tmp_path_factory.mktemp("material")
    chance = random.Random(7)
    words = [f"{chance.getrandbits(40):x}" for _ in range(5000)]
    text = folder / "text"
    with text.open("w") as file:
        while file.tell() < TEXT_BYTES:
            file.write(" ".join(chance.choices(words, k=2000)) + "\n")
    lines = folder / "lines"
    with lines.open("w") as file:
        file.writelines(f"{chance.getrandbits(64):016x}\n" for _ in range(LINES))
    return Material(folder, text, lines)


@pytest.fixture(scope="module")
def between(material: Material) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(material.folder) as made:
        yield made


def digest(path: Path) -> str:
    """What a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def started(host: Host, command: Sequence[str], output: Path) -> HostProcess:
    """The command, writing to a file as a program from a script would.

    At the lowest priority: however busy the machine is, the move comes before its end.
    """
    with output.open("wb") as file:
        return host.popen(["nice", "-n19", *command], stdout=file, cwd=output.parent)


def moved_in_mid_work(between: Road, process: HostProcess) -> None:
    """Move it, see that it was not at its end, and wait for that over there."""
    with process:
        report = between.move(process.pid_inside, between.a, between.b).arrived()
        assert process.wait() == -9
    pid = report.processes[0].destination_pid
    assert pid is not None
    assert pid not in [ended for ended, _ in between.b.exits()], "it had ended already"
    assert between.b.wait_exit(pid, 120) == 0


@pytest.mark.parametrize("run", range(TIMES))
def test_xz_compresses_with_two_threads(
    between: Road, material: Material, run: int
) -> None:
    packed = material.folder / f"text-{run}.xz"
    command = ["xz", "-T2", "-5", "--block-size=3MiB", "-c", str(material.text)]
    moved_in_mid_work(between, started(between.a, command, packed))
    unpacked = material.folder / f"text-{run}"
    with packed.open("rb") as source, unpacked.open("wb") as sink:
        between.b.popen(["xz", "-dc"], stdin=source, stdout=sink).wait()
    assert digest(unpacked) == digest(material.text)
    reference = material.folder / "text-unmoved.xz"
    if not reference.exists():
        started(between.a, command, reference).wait()
    assert digest(packed) == digest(reference)


@pytest.mark.parametrize("run", range(TIMES))
def test_sort_sorts_with_two_threads(
    between: Road, material: Material, run: int
) -> None:
    result = material.folder / f"sorted-{run}"
    command = ["sort", "--parallel=2", "-S", "64M", "-T", str(material.folder)]
    process = started(between.a, [*command, str(material.lines)], result)
    moved_in_mid_work(between, process)
    lines = sorted(material.lines.read_bytes().splitlines(keepends=True))
    assert result.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("run", range(TIMES))
def test_python_with_threads_and_a_transaction_under_way(
    between: Road, material: Material, run: int
) -> None:
    folder = material.folder / f"python-{run}"
    folder.mkdir()
    program = [os.path.realpath(sys.executable), "-c", SQLITE, str(folder)]
    with (folder / "errors").open("wb") as errors:
        process = between.a.popen(program, stderr=errors, cwd=folder)
    moved_in_mid_work(between, process)
    total = sum(n * n for n in range(400_000))
    assert (folder / "errors").read_text() == ""
    assert (folder / "result").read_text() == f"400000 {total}\n"


@pytest.mark.parametrize("run", range(TIMES))
def test_the_compiler_compiles(between: Road, material: Material, run: int) -> None:
    # GCC's compiler proper is a C++ program; gcc(1) only starts it.
    found = subprocess.run(
        ["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True
    )
    source = material.folder / "source.c"
    if not source.exists():
        source.write_text("\n".join(FUNCTION.format(n=n) for n in range(600)))
    command = [found.stdout.strip(), "-quiet", "-O2", str(source), "-o"]
    moved = material.folder / f"moved-{run}.s"
    log = material.folder / f"cc1-{run}.log"
    moved_in_mid_work(between, started(between.a, [*command, str(moved)], log))
    unmoved = material.folder / "unmoved.s"
    if not unmoved.exists():
        started(between.a, [*command, str(unmoved)], log).wait()
    assert digest(moved) == digest(unmoved)
