"""Two hosts, a counting process on one, and movers that stop at a point of a test's
choice; for what people do about a hand-over."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from migrate.failpoints import VARIABLE
from migrate.testbed import Agent, Host, HostProcess, TestBed
from tests.live.census import leaves, processes
from tests.live.handover import (
    ROOT,
    compiled,
    eventually,
    is_copy,
    kill,
)
from tests.live.stage import MIGRATE, Ended, address

_PATIENCE_S: Final = 30.0


class Counter:
    """The counting process, wherever it is."""

    def __init__(self, process: HostProcess, witness: Path) -> None:
        self.process = process
        self._witness = witness

    @property
    def pid(self) -> str:
        """As its host sees it, for a command line."""
        return str(self.process.pid_inside)

    def lines(self) -> list[str]:
        """What it has counted: host and number."""
        return self._witness.read_text().split("\n")[:-1]

    def assert_counts_on(self, where: str) -> None:
        """There, and without a gap or a repetition since the beginning."""
        count = len(self.lines())
        eventually(lambda: len(self.lines()) > count + 20, "it counts on")
        lines = self.lines()
        assert lines[-1].startswith(f"{where} "), lines[-1]
        numbers = [int(line.split()[1]) for line in lines]
        assert numbers == list(range(1, len(lines) + 1))

    def assert_stands_still(self) -> None:
        """Frozen: no thread of it runs, and it has stopped counting."""
        (leaf,) = self._leaves()
        assert "frozen 1" in (leaf / "cgroup.events").read_text()
        here = [line for line in self.lines() if line.startswith("a ")]
        assert here == [line for line in self.lines() if line.startswith("a ")]

    def _leaves(self) -> list[Path]:
        own = Path(f"/proc/{self.process.pid}/cgroup").read_text().strip()
        name = own.rpartition("/")[2]
        assert name.startswith("migrate-departure-"), own
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        (top,) = {x.split()[4] for x in mounts if " - cgroup2 " in x}
        return [Path(top + own.partition("::")[2])]


class Held:
    """A command that stands at its fail point until the block ends, or it is killed."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._reached: socket.socket | None = None

    def wait(self) -> None:
        """Until it has come there."""
        self._reached, _ = self._listener.accept()
        self._reached.recv(100)

    def go_on(self) -> None:
        """It does."""
        if self._reached is not None:
            self._reached.close()
            self._reached = None


class HandoverStage:
    """Host a has no agent, so nobody there does anything unless he is told."""

    def __init__(self, bed: TestBed, folder: Path) -> None:
        self.a, self.b = bed.host("a"), bed.host("b")
        self.folder = folder
        self.program = compiled(folder)
        self._counters = 0
        self.armed = folder / "armed"
        self.armed.write_text("")
        self.agent = self.b.agent(env=self.arming(f"@{self.armed}"))
        self.to = address(self.agent)

    @contextmanager
    def counter(self) -> Iterator[Counter]:
        """A counting process on a; it is dead afterwards, wherever it is then."""
        self._counters += 1
        witness = self.folder / f"witness-{self._counters}"
        argv = [str(self.program), str(witness)]
        process = self.a.popen(argv, stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield Counter(process, witness)
            finally:
                self._end(os.fsencode(str(witness)))

    def migrate(self, host: Host, *arguments: str, fault: str = "") -> Ended:
        """``migrate ARGUMENTS`` to its end; its stdout is ``said`` as well."""
        env = self.arming(fault) if fault else None
        done = host.run([*MIGRATE, *arguments], env=env, cwd=ROOT)
        return Ended(done.returncode, done.stdout + done.stderr, {})

    def move(self, counter: Counter, *, fault: str = "") -> Ended:
        """A move from a to b."""
        return self.migrate(self.a, "--to", self.to, "-q", counter.pid, fault=fault)

    @contextmanager
    def moving(
        self, counter: Counter, fault: str = "", *, to: Agent | None = None
    ) -> Iterator[HostProcess]:
        """The same, while it runs; killed in the end."""
        process = self.a.popen(
            [*MIGRATE, "--to", address(to or self.agent), "-q", counter.pid],
            env=self.arming(fault) if fault else None,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        with process:
            yield process
            process.kill()

    def transaction(self) -> str:
        """The one that status on a names."""
        said = self.migrate(self.a, "status").said
        return said.split(" ", 1)[0]

    @contextmanager
    def held(
        self, point: str, *, of_worker: bool = False
    ) -> Iterator[tuple[str, Held]]:
        """What arms ``point``, so that whoever comes there is held."""
        path = tempfile.mktemp(prefix="held-", dir=self.folder)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(_PATIENCE_S)
            fault = f"{point}=tell:{path}"
            held = Held(listener)
            self.armed.write_text(fault if of_worker else "")
            try:
                yield fault, held
            finally:
                self.armed.write_text("")
                held.go_on()

    @contextmanager
    def cut(self) -> Iterator[None]:
        """The hosts do not see one another."""
        self.a.run(["ip", "link", "set", "eth0", "down"], check=True)
        try:
            yield
        finally:
            self.a.run(["ip", "link", "set", "eth0", "up"], check=True)

    @contextmanager
    def agent_on_a(self) -> Iterator[Agent]:
        """While the block lasts."""
        agent = self.a.agent()
        try:
            yield agent
        finally:
            agent.stop()
            agent.process.close()

    def arming(self, fault: str) -> dict[str, str]:
        """An environment in which it comes to that."""
        return {**os.environ, VARIABLE: fault}

    def _end(self, witness: bytes) -> None:
        """Every copy with this witness, and what our hosts still know of it."""
        for host in (self.a, self.b):
            for pid in processes(host):
                if is_copy(pid, witness):
                    kill(pid)
        eventually(self._swept, "no leaf")
        self.a.run(["rm", "-rf", "/run/migrate/departures"], check=True)

    def _swept(self) -> bool:
        for leaf in leaves(self.a):
            try:
                leaf.rmdir()
            except OSError:
                return False
        return True


@contextmanager
def handover_stage(folder: Path) -> Iterator[HandoverStage]:
    """Two hosts that see ``folder`` and the project."""
    with TestBed(shared=[ROOT, folder]) as bed:
        yield HandoverStage(bed, folder)
