"""A destination that cannot be reached or cannot have it: exit codes 4 and 5."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from migrate.demo import workload
from migrate.testbed import HostProcess
from tests.live.stage import Actor, Stage, eventually, stage

# It says its port, answers each connection with argv[1] (hexadecimal), and listens on.
_SERVER: Final = """
import socket, sys
with socket.create_server(("0.0.0.0", 0)) as server:
    print(server.getsockname()[1], flush=True)
    open_ones = []
    while True:
        connection, _ = server.accept()
        connection.sendall(bytes.fromhex(sys.argv[1]))
        open_ones.append(connection)
"""
SSH = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
# A file of the process, below the directory that each host has for itself.
PLACE: Final = "/tmp/place"


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, for all tests here."""
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as made:
        yield made


@contextmanager
def server(on: Stage, answer: bytes = b"") -> Iterator[str]:
    """A service on b that is no agent; what --to takes."""
    with on.b.popen(
        [sys.executable, "-c", _SERVER, answer.hex()], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield f"{on.b.address}:{port}"
        finally:
            process.kill()
            process.wait()


def test_nobody_can_be_reached(on: Stage) -> None:
    with on.actor() as actor:
        for to, sentence in (
            (f"{on.b.address}:1", "Connection refused"),
            ("nobody.invalid:7077", "nobody.invalid"),
            ("[::1]:1", "Connection refused"),
        ):
            for command in (["--to", to], ["check", "--to", to]):
                ended = on.run(*command, "--json", actor.pid)
                ended.assert_failed(
                    4, sentence, "The process was not touched. Is an agent listening"
                )
        actor.assert_unharmed()


@pytest.mark.parametrize(
    "answer", [SSH, HTTP, bytes(64), b"\xff" * 64], ids=["ssh", "http", "zeros", "ones"]
)
def test_somebody_else_answers(on: Stage, answer: bytes) -> None:
    with on.actor() as actor, server(on, answer) as to:
        ended = on.run("--to", to, "--json", actor.pid)
        ended.assert_failed(
            4,
            "that is no migrate agent or command of this version",
            "The process was not touched. Is an agent listening there?",
        )
        actor.assert_unharmed()


def test_nobody_answers_in_time(on: Stage) -> None:
    with on.actor() as actor, server(on) as to:
        ended = on.run("--to", to, "--json", actor.pid)
        ended.assert_failed(
            4,
            "the peer took too long to prove who it is",
            "The process was not touched. Is an agent listening there?",
        )
        actor.assert_unharmed()


def test_whoever_answers_wrongly_can_be_left(on: Stage) -> None:
    with on.actor() as actor, server(on) as to:
        ended = on.run("--to", to, "--json", "--timeout", "0.5", actor.pid)
        ended.assert_failed(6, "0.5 s")
        actor.assert_unharmed()


def test_the_pid_is_taken(on: Stage) -> None:
    with on.actor() as actor:
        # The next process gets the number after the last one (pid_namespaces(7)).
        last = int(actor.pid) - 1
        script = f"echo {last} > /proc/sys/kernel/ns_last_pid; sleep 1000 & wait"
        with on.b.popen(["sh", "-c", script]):
            eventually(lambda: runs(on, actor.pid), "somebody has the number")
            ended = on.move(actor, "--pid", "keep")
            ended.assert_failed(
                5,
                "The destination refused it. The process runs on here, unharmed.",
                f"A process with pid {actor.pid} cannot be born here",
                "Try --pid new-namespace.",
            )
            actor.assert_unharmed()
            # What it recommends works.
            assert on.move(actor, "--pid", "new-namespace").code == 0


def runs(on: Stage, pid: str) -> bool:
    return on.b.run(["test", "-e", f"/proc/{pid}"]).returncode == 0


@contextmanager
def settled(on: Stage, there: str) -> Iterator[Actor]:
    """A program that exists on a only; ``there`` is what b has at its place."""
    make = f"cp {on.workload} {PLACE}"
    on.a.run(["sh", "-ec", make], check=True)
    on.b.run(["sh", "-ec", f"rm -rf {PLACE}; {there}"], check=True)
    with on.actor(program=Path(PLACE)) as actor:
        yield actor


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ("true", f"{PLACE} cannot be executed here: No such file or directory"),
        (f"cp /bin/sleep {PLACE}", f"{PLACE} is mapped and differs here"),
        (f"mkdir {PLACE}", f"{PLACE} cannot be executed here: Permission denied"),
        (f"echo text > {PLACE}; chmod 755 {PLACE}", f"{PLACE} cannot be executed here"),
    ],
    ids=["missing", "another version", "a directory", "no program"],
)
def test_the_program_is_another_there(on: Stage, there: str, sentence: str) -> None:
    with settled(on, there) as actor:
        ended = on.move(actor)
        ended.assert_failed(5, "The process runs on here, unharmed.", sentence)
        actor.assert_unharmed()
        on.assert_nothing_left(actor)
        on.b.run(["sh", "-ec", f"rm -rf {PLACE}; cp {on.workload} {PLACE}"], check=True)
        on.assert_next_move_works(actor)


@pytest.mark.parametrize(
    ("arrange", "sentence"),
    [
        ("file = open('/tmp/here/file', 'w')", "/tmp/here/file"),
        ("os.chdir('/tmp/here')", "/tmp/here"),
        ("folder = os.open('/tmp/here', os.O_RDONLY)", "/tmp/here"),
    ],
    ids=["open file", "working directory", "open directory"],
)
def test_a_file_is_missing_there(on: Stage, arrange: str, sentence: str) -> None:
    with waiting(on, arrange) as process:
        actor_pid = str(process.pid_inside)
        ended = on.run("--to", on.to, "--json", actor_pid)
        ended.assert_failed(5, "The process runs on here, unharmed.", sentence)
        on.b.run(["sh", "-ec", "mkdir /tmp/here; touch /tmp/here/file"], check=True)
        assert on.run("--to", on.to, "--json", actor_pid).code == 0
        on.b.run(["rm", "-r", "/tmp/here"], check=True)


@contextmanager
def waiting(on: Stage, arrange: str) -> Iterator[HostProcess]:
    """A Python program on a that has run ``arrange``."""
    program = textwrap.dedent(
        f"""
        import os, signal
        os.makedirs("/tmp/here", exist_ok=True)
        {arrange}
        os.close(1)
        os.open("/dev/null", os.O_WRONLY)
        signal.pause()
        """
    )
    process = on.a.popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        yield process
    finally:
        on.clear()
        process.close()
