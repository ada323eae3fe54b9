"""A process inside a host, as the maker of the bed holds it."""

import os
import select
import signal
import socket
from typing import IO, Final

from migrate.testbed import wire


class HostProcess:
    """One process of a host; still this one when its pid has gone to another.

    Attributes:
        pid: as the maker sees it.
        pid_inside: as the host sees it.
        stdin, stdout, stderr: our ends where PIPE was asked for; the caller closes
            them, or uses the process as a context manager.
    """

    def __init__(
        self, requests: socket.socket, packet: wire.Packet, found: wire.Found
    ) -> None:
        (self._pidfd,) = packet.fds
        self.pid: Final = packet.sender_pid
        self.pid_inside: Final = found.pid
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.returncode: int | None = None
        self._requests = requests

    def __repr__(self) -> str:
        return f"<HostProcess {self.pid} ({self.pid_inside} inside)>"

    def __enter__(self) -> "HostProcess":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back our descriptors; the process itself lives on."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        """Send a signal to just this process.

        Raises:
            ProcessLookupError: it has ended.
        """
        signal.pidfd_send_signal(self._pidfd, signal.Signals(number))

    def kill(self) -> None:
        """Send SIGKILL; a process that has ended is left in peace."""
        try:
            self.send_signal(signal.SIGKILL)
        except ProcessLookupError:
            pass

    def is_alive(self) -> bool:
        """Whether it has not ended yet; one that nobody has reaped has ended."""
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return not ended.poll(0)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it has ended and been reaped; a signal counts negative.

        Only for children of the host's init: those spawned by it, and orphans.

        Raises:
            TimeoutError: it still runs.
        """
        if self.returncode is None:
            self.returncode = wait_exit(self._requests, self.pid_inside, timeout_s)
        return self.returncode


def wait_exit(requests: socket.socket, pid: int, timeout_s: float | None) -> int:
    """What ``pid`` ended with, in the manner of subprocess."""
    with wire.Question(requests, wire.Wait(pid)) as question:
        try:
            exited, _ = question.answer(wire.Exited, timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"Process {pid} of the host has not ended after {timeout_s} s, or is "
                "not a child of its init."
            ) from None
    return os.waitstatus_to_exitcode(exited.status)
