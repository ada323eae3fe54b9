"""Builds a scenario, starts it, hears what it says and tells it that it was moved."""

from __future__ import annotations

import functools
import os
import select
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from migrate.testbed import Host, HostProcess

HERE = Path(__file__).parent
FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
PATIENCE_S = 30.0  # a scenario that says nothing for so long is stuck


def build_folder() -> Path:
    """Where the programs are; a host must see it to run one."""
    return Path(_build_folder().name)


@functools.cache
def _build_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="scenarios-")


@functools.cache
def build(name: str) -> Path:
    """The compiled scenario ``name``.c; the same file for the whole test run."""
    program = build_folder() / name
    subprocess.run(
        ["gcc", *FLAGS, "-o", str(program), str(HERE / f"{name}.c"), "-lrt"],
        check=True,
    )
    return program


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a scenario waits."""

    pid: int  # as it sees itself
    flag: int  # address of the int that it watches


class Scenario:
    """One run of a scenario program; as a context manager it ends with the block."""

    def __init__(
        self, name: str, folder: Path, *arguments: str, host: Host | None = None
    ) -> None:
        """Start it, on this machine or in a ``host`` that sees the same folders."""
        self.name = name
        self._fifo = folder / "-".join((name, *arguments, "said"))
        os.mkfifo(self._fifo)
        self._said = self._listening()
        self._rest = b""
        command = [str(build(name)), str(self._fifo), *arguments]
        self.process: subprocess.Popen[bytes] | HostProcess
        if host is None:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
        else:
            self.process = host.popen(command, cwd=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.process:
            self.process.kill()
            self.process.wait()
        os.close(self._said)

    def line(self) -> str:
        """The next line that it says; waits for it."""
        while b"\n" not in self._rest:
            self._rest += self._hear()
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode(errors="replace")

    def _hear(self) -> bytes:
        """Everything it says until it has closed the FIFO: it holds it no longer."""
        said = b""
        while True:
            readable, _, _ = select.select([self._said], [], [], PATIENCE_S)
            assert readable, f"{self.name} says nothing"
            chunk = os.read(self._said, 65536)
            if not chunk:
                break
            said += chunk
        # A reader that has seen the end sees it for ever; a new one waits for the
        # next writer. It is there before the old one goes, so nothing is lost.
        before, self._said = self._said, self._listening()
        os.close(before)
        return said

    def _listening(self) -> int:
        return os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def ready(self) -> Ready:
        """Wait until it has arranged everything."""
        word, *numbers = self.line().split()
        assert word == "ready", (word, numbers)
        return Ready(int(numbers[0]), int(numbers[1], 16))

    def verdict(self) -> list[str]:
        """Everything that it finds wrong; empty if it says "ok". Waits for it."""
        complaints: list[str] = []
        while (line := self.line()) not in ("ok", "failed"):
            complaints.append(line)
        return complaints if complaints else [] if line == "ok" else ["failed"]


def tell_moved(pid: int, ready: Ready) -> None:
    """Let the scenario that runs as ``pid`` go on and check itself."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(ready.flag)
        memory.write((1).to_bytes(4, "little"))
