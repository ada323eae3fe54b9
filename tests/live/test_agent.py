"""The agent: what becomes of an arrival when its worker, or the agent, dies."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from migrate import arrival_leaf, config_directory, limits
from migrate.kernel import cgroups, procfs
from precopy.ids import Pid
from tests.live import agent_worker

ROOT = Path(__file__).parents[2]
MIGRATE = (sys.executable, "-m", "migrate")


class RunningAgent:
    """An agent as a process, with what it says."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self.process.stderr is not None
        self._stderr = self.process.stderr
        self._log = b""
        self.port = self._wait_until_it_listens()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _wait_until_it_listens(self) -> int:
        for line in self._stderr:
            if listening := re.fullmatch(rb"listening on 127\.0\.0\.1:(\d+)\n", line):
                return int(listening[1])
            self._log += line
        raise AssertionError(self._log)

    def _read(self) -> None:
        self._log += self._stderr.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def stop(self) -> int:
        """SIGTERM; how it ended."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        self._reader.join()
        return code

    def kill(self) -> None:
        """SIGKILL; its workers go on, with their end of its stderr."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Wait until nobody writes to its stderr any more."""
        if self.process.poll() is None:
            self.kill()
        self._reader.join()
        self._stderr.close()

    def events(self) -> list[str]:
        """What its log says, once it has stopped."""
        return [json.loads(line)["event"] for line in self._log.splitlines()]


@contextmanager
def running(*command: str) -> Iterator[RunningAgent]:
    agent = RunningAgent(*command)
    try:
        yield agent
    finally:
        agent.close()


@contextmanager
def agent_for_tests() -> Iterator[RunningAgent]:
    with running(*agent_worker.HERE, "agent") as agent:
        yield agent


class Held:
    """A process in the leaf of a worker, and the worker, watched by descriptor."""

    def __init__(self, pid: int, worker: int) -> None:
        self.pid = Pid(pid)
        self._pidfd = os.pidfd_open(pid)
        self._worker = os.pidfd_open(worker)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(self._pidfd)
        os.close(self._worker)

    def end_worker(self, connection: socket.socket) -> None:
        """Let the worker die, and wait until it has."""
        connection.sendall(b"die\n")
        assert select.select([self._worker], [], [], 30)[0]

    def ends(self, timeout_s: float = 30) -> bool:
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def is_in_a_leaf(self) -> bool:
        return cgroups.LEAF_PREFIX in cgroups.current(self.pid)


def arrive(connection: socket.socket, fate: str) -> Held:
    """An arrival that is complete and frozen; it ends when the next line is sent."""
    connection.sendall(f"holds {fate}\n".encode())
    with connection.makefile("r") as answer:
        return Held(*map(int, answer.readline().split()))


def leaves() -> list[str]:
    """Those of our pid namespace: hosts of test beds have theirs in others."""
    ours = cgroups.LEAF_PREFIX + arrival_leaf.transaction().rpartition("-")[0]
    ours = ours.rpartition("-")[0]
    return [path for path in cgroups.leaves() if f"/{ours}-" in path]


def test_it_says_once_where_it_listens_and_stops_when_told() -> None:
    """In one line before any other; SIGTERM and SIGINT end it with 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(*MIGRATE, "agent", "--listen", "127.0.0.1:0") as agent:
            agent.process.send_signal(number)
            assert agent.stop() == 0
            assert agent.events()[-2:] == ["stopping", "stopped"]


def test_an_address_that_is_taken_is_a_sentence() -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            [*MIGRATE, "agent", "--listen", f"127.0.0.1:{port}"],
            cwd=ROOT,
            capture_output=True,
        )
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"migrate: Listening on 127.0.0.1:")
    assert refused.stderr.count(b"\n") == 1


def test_what_never_ran_dies_with_its_worker() -> None:
    """The next arrival finds an agent that has forgotten it."""
    with agent_for_tests() as agent:
        for _ in range(agent_worker.WORKERS_MAX + 1):
            with agent.connect() as connection, arrive(connection, "dies") as held:
                assert held.is_in_a_leaf()
                assert not held.ends(0)
                held.end_worker(connection)
                assert held.ends()
        assert agent.stop() == 0
        assert agent.events().count("worker ended") == agent_worker.WORKERS_MAX + 1
    assert leaves() == []


@pytest.mark.parametrize("fate", ["commits", "thaws"])
def test_what_was_committed_runs_on(fate: str) -> None:
    """Without its worker, and without the agent; a worker may die before it thaws."""
    with agent_for_tests() as agent:
        with agent.connect() as connection, arrive(connection, fate) as held:
            held.end_worker(connection)
            assert agent.stop() == 0
            assert not held.ends(0)
            assert not held.is_in_a_leaf()
            assert procfs.stat(held.pid).state == "S"
    assert leaves() == []


def test_one_worker_s_death_is_not_the_other_s() -> None:
    """Nor is its leaf."""
    with agent_for_tests() as agent:
        with agent.connect() as one, agent.connect() as two:
            with arrive(one, "dies") as first, arrive(two, "dies") as second:
                first.end_worker(one)
                assert first.ends()
                assert not second.ends(0)
                assert second.is_in_a_leaf()
                second.end_worker(two)
                assert second.ends()
        assert agent.stop() == 0


def test_too_many_are_turned_away() -> None:
    """At once: nobody waits for a worker that may never be free."""
    with agent_for_tests() as agent:
        with ExitStack() as connections:
            held = [
                connections.enter_context(agent.connect())
                for _ in range(agent_worker.WORKERS_MAX)
            ]
            for connection in held:
                connection.sendall(b"waits\n")
                assert connection.recv(100) == b"waiting\n"
            with agent.connect() as late:
                assert late.recv(1) == b""
            assert agent.stop() == 0
            for connection in held:
                assert connection.recv(1) == b""
        assert agent.events().count("turned away") == 1


def test_who_proves_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From startups_full on at once; those before are heard to their end."""
    monkeypatch.setenv(config_directory.VARIABLE, str(tmp_path))
    text = "startups_begin = 2\nstartups_full = 2\n"
    config_directory.write_ours(tmp_path / limits.FILE, text, anew=True)
    command = (*MIGRATE, "agent", "--listen", "127.0.0.1:0")
    with running(*command) as agent, ExitStack() as connections:
        silent = [connections.enter_context(agent.connect()) for _ in range(2)]
        with agent.connect() as late:
            assert late.recv(1) == b""
        for connection in silent:
            # Not at its end: a worker waits for what this one has to say.
            assert not select.select([connection], [], [], 0)[0]
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert agent.stop() == 0
        assert agent.events().count("dropped") == 1


def test_the_next_agent_settles_what_a_dead_one_left() -> None:
    """What is frozen never ran; what runs was committed; what has a worker is his."""
    with ExitStack() as at_the_end:
        agent = at_the_end.enter_context(agent_for_tests())
        one = at_the_end.enter_context(agent.connect())
        two = at_the_end.enter_context(agent.connect())
        frozen = at_the_end.enter_context(arrive(one, "dies"))
        thawed = at_the_end.enter_context(arrive(two, "thaws"))
        agent.kill()
        with agent_for_tests():
            assert not frozen.ends(0)
            assert frozen.is_in_a_leaf(), "its worker is still there"
        frozen.end_worker(one)
        thawed.end_worker(two)
        assert len(leaves()) == 2
        with agent_for_tests():
            assert frozen.ends()
            assert not thawed.ends(0)
            assert not thawed.is_in_a_leaf()
    assert leaves() == []


def test_a_leaf_of_another_pid_namespace_is_not_ours() -> None:
    """Hosts of a test bed share their cgroups, and have the same pids."""
    own = cgroups.current(Pid(os.getpid()))
    ours = arrival_leaf.transaction()
    namespace = ours.split("-")[1]
    for name in (ours.replace(namespace, "1"), f"{ours}-Strange", "testbed-1-2-3"):
        leaf = cgroups.Leaf.create(own, name)
        try:
            assert arrival_leaf.sweep() == ()
        finally:
            leaf.dissolve()
