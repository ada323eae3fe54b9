"""C programs that trackers follow, compiled when they are needed."""

import ctypes
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final, Self

import pytest

from migrate.kernel.maps import parse_maps
from precopy.address_space import AddressSpace
from precopy.ids import Pid

SOURCES: Final = Path(__file__).parent
SYS_PIDFD_GETFD: Final = 438  # the same on every architecture


def compiled(name: str, folder: Path) -> Path:
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    program = folder / name
    source = SOURCES / f"{name}.c"
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-Wall", "-Wextra", "-o", program, source],
        check=True,
    )
    return program


class Target:
    """A program of targets/ that opened a userfaultfd and waits to be told."""

    def __init__(self, *arguments: str | Path) -> None:
        self.child = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = Pid(self.child.pid)
        assert self.child.stdout is not None
        self._said = self.child.stdout
        # The pipe is not buffered: this reads the line and no more.
        self.uffd_number = int(self._said.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.child.kill()
        self.child.wait()
        self._said.close()
        if self.child.stdin is not None:
            self.child.stdin.close()

    def uffd(self) -> int:
        """Take its userfaultfd; it closes its own when it is told to go on."""
        libc = ctypes.CDLL(None, use_errno=True)
        pidfd = os.pidfd_open(self.pid)
        try:
            fd = int(libc.syscall(SYS_PIDFD_GETFD, pidfd, self.uffd_number, 0))
            assert fd >= 0, os.strerror(ctypes.get_errno())
            return fd
        finally:
            os.close(pidfd)

    def tell(self, what: bytes = b"x") -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(what)

    def wait(self) -> None:
        """Wait for the answer of a program that answers with a letter."""
        answer = self._said.read(1)
        assert answer == b"a", f"it ended: {self.child.wait()}"

    def answer(self) -> int:
        """The answer of a program that answers with a number."""
        line = self._said.readline()
        assert line, f"it ended: {self.child.wait()}"
        return int(line)

    def stop(self) -> None:
        """Stop it wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def space(self) -> AddressSpace:
        """Its mappings. What is read while it runs may overlap: then once more."""
        while True:
            try:
                return parse_maps(Path(f"/proc/{self.pid}/maps").read_bytes())
            except ValueError:
                continue
