"""What cannot go: exit code 3, every reason in a sentence, and nothing was touched.

What is said of each is tested with the preflight; here it is the command that says it.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from migrate.demo import workload
from migrate.kernel import procfs
from migrate.testbed import HostProcess
from precopy.ids import Pid
from tests.live.refused import CALLS
from tests.live.stage import (
    MIGRATE,
    ROOT,
    Ended,
    Stage,
    blocks_in,
    eventually,
    inside,
    stage,
)
from tests.live.unharmed import Condition

# When it is ready it closes its stdout, and then waits for ever. A child has to close
# it at once.
_WAITING: Final = """
import os, signal, socket, sys
{arrange}
os.close(1)
os.open("/dev/null", os.O_WRONLY)
signal.pause()
"""
# mov eax, 29 (pause); int 0x80; jmp to the start: see test_preflight.
_32_BIT: Final = bytes.fromhex("b81d000000cd80ebf7")

PAUSE = 34  # x86-64
CHILD = "child = os.fork() or (os.close(1), signal.pause())"
ZOMBIE = "child = os.fork() or os._exit(0)\nos.waitid(os.P_PID, child, 0x01000004)"
TRACER = CALLS + CHILD + "\nassert libc.ptrace(0x4206, child, 0, 0) == 0"
SOCKET = "far = socket.socket(); far.bind(('127.0.0.1', 0)); far.listen()"
TERMINAL = "os.openpty()"
CONTROLLING = "import fcntl\nfcntl.ioctl(os.openpty()[1], 0x540E, 0)"


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, for all tests here."""
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as made:
        yield made


@contextmanager
def waiting(on: Stage, arrange: str) -> Iterator[HostProcess]:
    """A Python program on a that has run ``arrange``, and does nothing."""
    process = on.a.popen(
        [sys.executable, "-c", _WAITING.format(arrange=arrange)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        eventually(lambda: blocks_in(process) == PAUSE, "it waits for ever")
        yield process
    finally:
        on.clear()
        process.close()


def assert_refused(on: Stage, pid: int, *sentences: str, pid_inside: int = 0) -> Ended:
    """Asked to move ``pid`` (as we number it): no, and nothing has changed."""
    before = Condition.of(pid)
    there = str(pid_inside or inside(pid))
    ended = on.run("--to", on.to, "--json", there)
    ended.assert_failed(3, "Nothing was touched.", *sentences)
    before.assert_same_now()
    return ended


def test_who_is_not_there(on: Stage) -> None:
    on.run("--to", on.to, "--json", "54321").assert_failed(
        3, "There is no process with pid 54321. Look it up again."
    )


def test_the_init_of_a_host(on: Stage) -> None:
    assert_refused(on, on.a.pid, "pid 1 is the init of this host", pid_inside=1)


def test_a_kernel_thread(on: Stage) -> None:
    """From outside: a host with a pid namespace of its own sees none."""
    if procfs.stat(Pid(2)).name != "kthreadd":
        pytest.skip("this pid namespace has no kernel threads")
    done = subprocess.run(
        [*MIGRATE, "--to", on.to, "2"], cwd=ROOT, capture_output=True, text=True
    )
    ended = Ended(done.returncode, done.stderr, {})
    ended.assert_failed(3, "pid 2 (kthreadd) is a kernel thread")


def test_the_command_itself(on: Stage) -> None:
    command = f"exec {' '.join(MIGRATE)} --to {on.to} $$"
    done = on.a.run(["sh", "-c", command], cwd=ROOT)
    ended = Ended(done.returncode, done.stderr, {})
    ended.assert_failed(3, "is migrate itself, which does the moving and stays here.")


def test_the_agent(on: Stage) -> None:
    """It listens for as long as it lives, so it can never go."""
    agent = on.agent.process
    before = Condition.of(agent.pid)
    ended = on.run("--to", on.to, "--json", str(agent.pid_inside), host=on.b)
    ended.assert_failed(3, "Nothing was touched.", "is a socket")
    before.assert_same_now()


@pytest.mark.parametrize(
    ("arrange", "kind", "sentence"),
    [
        (TRACER, "tracer", "traces pid"),
        (SOCKET, "descriptor", "is a socket, which cannot be carried"),
        (TERMINAL, "descriptor", "is a terminal (/dev/p"),
        (CONTROLLING, "terminal", "has a controlling terminal (/dev/pts/"),
    ],
)
def test_who_has_what_cannot_go(
    on: Stage, arrange: str, kind: str, sentence: str
) -> None:
    with waiting(on, arrange) as process:
        ended = assert_refused(on, process.pid, sentence)
        assert kind in {reason["kind"] for reason in ended.report["reasons"]}


@pytest.mark.parametrize(
    ("arrange", "sentence"),
    [(ZOMBIE, "it is a zombie until its parent"), (TRACER, "is traced by pid")],
)
def test_children_of_a_sort(on: Stage, arrange: str, sentence: str) -> None:
    with waiting(on, arrange) as process:
        (child,) = procfs.children(Pid(process.pid))
        number = str(inside(child))
        traced = procfs.status(child).tracer
        ended = on.run("--to", on.to, "--json", number)
        ended.assert_failed(3, "Nothing was touched.", sentence)
        assert procfs.status(child).tracer == traced


def test_a_thread_that_does_not_lead_is_refused(on: Stage) -> None:
    arrange = "import threading\nthreading.Thread(target=signal.pause).start()"
    with waiting(on, arrange) as process:
        _, thread = procfs.threads(Pid(process.pid))
        before = Condition.of(process.pid)
        ended = on.run("--to", on.to, "--json", str(inside(thread)))
        ended.assert_failed(3, f"is a thread of process {process.pid_inside}")
        before.assert_same_now()


def test_a_stopped_process(on: Stage) -> None:
    """It stays as it is: to let it run is for whoever stopped it."""
    with waiting(on, "") as process:
        pid = Pid(process.pid)
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: procfs.status(pid).state == "T", "it stops")
        assert_refused(on, pid, f"kill -CONT {process.pid_inside}")
        assert procfs.status(pid).state == "T"


def test_a_32_bit_program(on: Stage, tmp_path: Path) -> None:
    program = on.workload.parent / "small"
    base, headers = 0x08048000, 52 + 32
    size = headers + len(_32_BIT)
    words = [2, 3, 1, base + headers, 52, 0, 0, 52, 32, 1, 0, 0, 0]
    sizes = [2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2]
    header = (
        b"\x7fELF\x01\x01\x01"
        + bytes(9)
        + b"".join(
            word.to_bytes(n, "little") for word, n in zip(words, sizes, strict=True)
        )
    )
    segment = [1, 0, base, base, size, size, 5, 4096]
    program.write_bytes(
        header + b"".join(word.to_bytes(4, "little") for word in segment) + _32_BIT
    )
    program.chmod(0o755)
    with on.a.popen([program]) as process:
        assert_refused(on, process.pid, "is a 32-bit program")
        process.kill()


def test_all_reasons_at_once(on: Stage) -> None:
    with waiting(on, SOCKET + "\n" + TERMINAL + "\n" + CHILD) as process:
        (child,) = procfs.children(Pid(process.pid))
        ended = assert_refused(
            on,
            process.pid,
            *(f"of pid {inside(pid)} is a socket" for pid in (process.pid, child)),
            *(f"of pid {inside(pid)} is a terminal" for pid in (process.pid, child)),
        )
        assert len(ended.report["reasons"]) == len(
            [line for line in ended.said.splitlines() if line.startswith("  - ")]
        )


def test_a_command_line_that_makes_no_sense(on: Stage) -> None:
    """Exit code 2, before anything is looked at."""
    for arguments, sentence in (
        (["--to", on.to], "Missing argument 'PID"),
        (["1234"], "Missing option '--to'"),
        (["--to", "nowhere", "1234"], "HOST:PORT"),
        (["--to", on.to, "me"], "'me' is not a valid integer"),
        (["--to", on.to, "-1"], "No such option"),
        (["--to", on.to, "0"], "0 is not in the range"),
        (["--to", on.to, "--on-stall", "cry", "1234"], "'cry' is not one of"),
        (["--to", on.to, "--timeout", "soon", "1234"], "soon"),
        (["--to", on.to, "--downtime-limit", "-5", "1234"], "-5"),
        (["move-it"], "No such command"),
    ):
        ended = on.run(*arguments)
        assert ended.code == 2, ended
        assert sentence in ended.said, ended


def test_several_processes_and_a_good_one_afterwards(on: Stage) -> None:
    with on.actor() as one, on.actor() as other:
        ended = on.run("--to", on.to, "--json", one.pid, other.pid)
        ended.assert_failed(3, "One process is moved at a time; name one pid")
        one.assert_unharmed()
        other.assert_unharmed()
        for _ in range(2):
            assert on.run("check", "--to", on.to, one.pid).code == 0
        one.assert_unharmed()
        on.assert_next_move_works(one)
