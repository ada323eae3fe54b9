"""A process by descriptor: it names one process for ever, its number does not.

described   pidfd_open(2), pidfd_send_signal(2), pidfd_getfd(2)
"""

import os
import select
import signal
from errno import ESRCH
from types import TracebackType
from typing import Final

from migrate.kernel import procfs, syscalls
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid


class PidFd:
    """One process, alive or not. Owns its descriptor."""

    def __init__(self, pid: Pid, fd: int) -> None:
        """Take over ``fd``, which refers to ``pid``; use ``open`` to get one."""
        self.pid: Final = pid
        self._fd = fd

    @classmethod
    def open(cls, pid: Pid, start_time_ticks: int | None = None) -> "PidFd":
        """The process that has this number now.

        ``start_time_ticks`` (of procfs.stat) says which one is meant: the number may
        have passed to another since somebody looked.

        Raises:
            TaskVanished: there is none, or it is another one.
        """
        try:
            pidfd = cls(pid, os.pidfd_open(pid))
        except ProcessLookupError as error:
            raise TaskVanished(pid) from error
        try:
            # Once we hold it, the number cannot pass on before it has been waited
            # for; so what /proc says now is about the one that we hold, or nothing.
            if start_time_ticks is not None:
                found = procfs.stat(pid).start_time_ticks
                if found != start_time_ticks or pidfd.has_ended():
                    raise TaskVanished(pid)
        except BaseException:
            pidfd.close()
            raise
        return pidfd

    def fileno(self) -> int:
        """The descriptor, which stays ours."""
        return self._fd

    def has_ended(self) -> bool:
        """Whether it has exited; it may be a zombie still."""
        return self.wait(0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it exits within ``timeout_s``; None waits for ever."""
        exits = select.poll()
        exits.register(self._fd, select.POLLIN)
        return bool(exits.poll(None if timeout_s is None else 1000 * timeout_s))

    def send_signal(self, number: int) -> None:
        """Send it a signal.

        Raises:
            TaskVanished: it has ended and been waited for.
        """
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError as error:
            raise TaskVanished(self.pid) from error

    def getfd(self, number: int) -> int:
        """A descriptor of ours for what the process has open as ``number``.

        It is the same description: an offset moved here has moved there. The caller
        owns it.

        Raises:
            TaskVanished: the process has ended.
            KernelError: EBADF, it has no such descriptor; EPERM, we may not trace it.
        """
        try:
            return syscalls.raw("pidfd_getfd", self._fd, number, 0, pid=self.pid)
        except KernelError as error:
            if error.errno == ESRCH:
                raise TaskVanished(self.pid) from error
            raise

    def close(self) -> None:
        """Let go of it; the process does not notice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> "PidFd":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
