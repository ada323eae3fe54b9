"""What the users of a host may have its agent move: their own processes, and no others.

Two hosts with agents that are root; who asks is not.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrate.demo import workload
from migrate.demo.compiling import compiled
from migrate.testbed import HostProcess
from tests.live.stage import ROOT, Stage, blocks_in, eventually, stage

NOBODY = 65534
SOMEBODY = 1  # daemon
PAUSE, SLEEP = 34, 230  # x86-64; sleep(1) has clock_nanosleep(2)
CONTROL = "/run/control"
HELD = "/run/held"
HIDES = "/tmp/hides"
HIDDEN = "/tmp/hidden"
# The program is imported before it gives up root: a user need not be able to read it.
ASKS = """\
import locale, os, sys
from migrate import arguments, cli, control, report
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
sys.exit(cli.run(sys.argv[2:]))
"""
BECOMES = """\
import os, sys
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("programs")
    hides = compiled("hides", [Path(__file__).parent / "targets" / "hides.c"], folder)
    with stage(workload.compiled(folder)) as both:
        for host in (both.a, both.b):
            shutil.copy(hides, f"/proc/{host.pid}/root{HIDES}")
        yield both


@contextmanager
def agent_of_a(here: Stage, **env: str) -> Iterator[None]:
    """The agent that users of a ask."""
    agent = here.a.agent(env={**os.environ, "MIGRATE_CONTROL": CONTROL, **env})
    try:
        there = Path(f"/proc/{here.a.pid}/root{CONTROL}")
        eventually(lambda: there.exists(), "users are heard")
        yield
    finally:
        assert agent.stop() == 0
        agent.process.close()


@contextmanager
def program_of(here: Stage, uid: int, *command: str) -> Iterator[HostProcess]:
    """A process of this user on a, which is in a system call for good."""
    argv = [sys.executable, "-c", BECOMES, str(uid), *command]
    with here.a.popen(argv) as process:
        try:
            name = Path(command[0]).name
            exe = Path(f"/proc/{process.pid}/exe")
            eventually(lambda: exe.readlink().name == name, "it runs its program")
            eventually(lambda: blocks_in(process) in (PAUSE, SLEEP), "it waits")
            yield process
        finally:
            process.kill()
            process.wait()


@dataclass
class Told:
    """What a user was told."""

    code: int
    stdout: str
    stderr: str


@contextmanager
def asking(here: Stage, uid: int, *arguments: str) -> Iterator[HostProcess]:
    """``migrate ARGUMENTS`` by this user on a."""
    with here.a.popen(
        [sys.executable, "-c", ASKS, str(uid), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MIGRATE_CONTROL": CONTROL},
        cwd=ROOT,
    ) as process:
        yield process


def ended(process: HostProcess) -> Told:
    assert process.stdout is not None
    assert process.stderr is not None
    stdout = process.stdout.read().decode()
    stderr = process.stderr.read().decode()
    return Told(process.wait(), stdout, stderr)


def asked(here: Stage, uid: int, *arguments: str) -> Told:
    with asking(here, uid, "--to", here.to, *arguments) as process:
        return ended(process)


def test_a_user_moves_a_process_of_his_own(here: Stage) -> None:
    """It runs as his over there, and what is to be said he is told himself."""
    with agent_of_a(here), program_of(here, NOBODY, "/bin/sleep", "600") as process:
        told = asked(here, NOBODY, str(process.pid_inside))
        assert told.code == 0, told
        assert here.b.address in told.stdout
        with here.b.process(process.pid_inside) as arrived:
            status = Path(f"/proc/{arrived.pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
            arrived.kill()
    here.assert_nothing_left()


@pytest.mark.parametrize(
    ("uid", "program"), [(0, "/bin/sleep"), (SOMEBODY, "/bin/sleep"), (NOBODY, HIDDEN)]
)
def test_a_user_is_refused_another_s(here: Stage, uid: int, program: str) -> None:
    """Of root, of another user; and his own that he may not look into."""
    here.a.run(["sh", "-ec", f"cp /bin/sleep {HIDDEN}; chmod 711 {HIDDEN}"], check=True)
    with agent_of_a(here), program_of(here, uid, program, "600") as process:
        for more in ([], ["--dry-run"]):
            told = asked(here, NOBODY, *more, str(process.pid_inside))
            assert told.code == 3, told
            assert f"not one that uid {NOBODY} could trace" in told.stderr
            assert "traced by" not in told.stderr
        assert Path(f"/proc/{process.pid}").exists()


@contextmanager
def held_at(here: Stage, place: str) -> Iterator[socket.socket]:
    """An agent on a whose departures stand still there; gives who is told of it."""
    where = f"/proc/{here.a.pid}/root{HELD}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(where)
        listener.listen()
        try:
            with agent_of_a(here, MIGRATE_FAILPOINTS=f"{place}=tell:{HELD}"):
                yield listener
        finally:
            os.unlink(where)


def test_a_user_calls_it_off(here: Stage) -> None:
    """With Ctrl-C, as if he had made it himself."""
    with (
        held_at(here, "source.offered") as listener,
        program_of(here, NOBODY, "/bin/sleep", "600") as process,
        asking(here, NOBODY, "--to", here.to, str(process.pid_inside)) as command,
    ):
        there, _ = listener.accept()
        with there:
            assert there.recv(100)  # its name
            command.send_signal(signal.SIGINT)
            assert command.stderr is not None
            while line := command.stderr.readline().decode():
                if "Calling it off" in line:
                    break
        assert line
        told = ended(command)
        assert told.code == 6, told
        assert Path(f"/proc/{process.pid}").exists()


def test_what_is_no_longer_his(here: Stage) -> None:
    """It could be looked into when he asked, and no more when it stood still."""
    with (
        held_at(here, "source.rounds.sent") as listener,
        program_of(here, NOBODY, HIDES) as process,
        asking(here, NOBODY, "--to", here.to, str(process.pid_inside)) as command,
    ):
        there, _ = listener.accept()
        with there:
            assert there.recv(100)  # its name
            process.send_signal(signal.SIGUSR1)
            own = Path(f"/proc/{process.pid}/environ")
            eventually(lambda: own.stat().st_uid == 0, "it hides")
        told = ended(command)
        assert told.code == 6, told
        assert f"not one that uid {NOBODY} could trace" in told.stderr
        assert Path(f"/proc/{process.pid}").exists()


def test_what_is_no_question(here: Stage) -> None:
    """Is answered with an end, and the next one is heard."""
    questions = [b"", b"\0", b"\xff" * 8, b"\4\0\0\0\x90\x90\x90\x90", b"\1\0\0\0\xc0"]
    with agent_of_a(here):
        for said in questions:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(f"/proc/{here.a.pid}/root{CONTROL}")
                if said:
                    socket.send_fds(link, [said], [1, 2])
                link.shutdown(socket.SHUT_WR)
                assert link.recv(1) == b"\2"
        told = asked(here, NOBODY, "1")
        assert told.code == 3, told
