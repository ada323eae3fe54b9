"""The memory of another process, read and written in bulk."""

from __future__ import annotations

import errno
import os
from array import array
from typing import TYPE_CHECKING, Final, Self

from precopy._native import ffi, lib
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid
from precopy.page_set import PageSet

if TYPE_CHECKING:
    from typing_extensions import Buffer

ONCE_BYTES: Final = 1 << 20


class TaskMemory:
    """Reads and writes the pages of one process, whatever their protection.

    Goes by process_vm_readv(2) and process_vm_writev(2), which are fast, and where
    these refuse (PROT_NONE, read-only) by /proc/PID/mem, which does not look at the
    protection of private mappings. The calling thread needs the right to ptrace it.
    """

    def __init__(self, pid: Pid) -> None:
        """Raises TaskVanished, or KernelError when we may not."""
        self.pid = pid
        self._fd = _open_mem(pid)
        self._memory = ffi.new("struct task_memory *")
        self._memory.pid, self._memory.mem = pid, self._fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = self._memory.mem = -1

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes from ``address``, which needs no alignment.

        Raises:
            KernelError: not all of it is mapped (EFAULT).
            TaskVanished: the process has gone.
        """
        pieces = []
        while length:
            try:
                piece = os.pread(self._fd, min(length, ONCE_BYTES), address)
            except OSError as error:
                number = errno.EFAULT if error.errno == errno.EIO else error.errno
                raise KernelError(f"read {address:#x}", self.pid, number or 0) from None
            if not piece:
                raise TaskVanished(self.pid)
            pieces.append(piece)
            address += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def write(self, address: int, data: Buffer) -> None:
        """Put ``data`` at ``address``, which needs no alignment.

        Raises:
            KernelError: not all of it is mapped, or it is shared and not writable
                (EFAULT); what lies before that place is written.
            TaskVanished: the process has gone.
        """
        rest = memoryview(data).cast("B")
        while rest:
            try:
                done = os.pwrite(self._fd, rest[:ONCE_BYTES], address)
            except OSError as error:
                number = errno.EFAULT if error.errno == errno.EIO else error.errno
                raise KernelError(
                    f"write {address:#x}", self.pid, number or 0
                ) from None
            if not done:
                raise TaskVanished(self.pid)
            address += done
            rest = rest[done:]

    def read_runs(self, pages: PageSet, buffer: Buffer) -> PageSet:
        """Read ``pages`` one behind the other to the front of ``buffer``.

        Gives the pages that were read, which lie in the buffer without gaps: those
        that vanished meanwhile are left out.

        Raises:
            ValueError: the buffer is too small.
            TaskVanished: the process has gone.
            KernelError: we may not read it.
        """
        bounds = pages.boundaries
        if memoryview(buffer).nbytes < pages.bytes:
            raise ValueError(f"a buffer too small for {pages.bytes} bytes")
        got = array("Q", bytes(16 * pages.pages))
        count = lib.memory_read_runs(
            self._memory,
            ffi.from_buffer("uint64_t[]", bounds),
            len(bounds),
            # Not a local, which the traceback of an error would keep: CPython 3.11
            # crashes where its collector finds a memoryview that is still in use.
            ffi.from_buffer("uint8_t[]", buffer),
            ffi.from_buffer("uint64_t[]", got),
        )
        if count < 0:
            raise self._error("process_vm_readv", -count)
        return PageSet.from_boundaries(got[:count])

    def write_runs(self, pages: PageSet, data: Buffer) -> None:
        """Write ``data`` to ``pages``, one behind the other.

        Raises:
            ValueError: it is not as long as the pages are.
            TaskVanished: the process has gone.
            KernelError: not all of it is mapped; what lies before is written.
        """
        bounds = pages.boundaries
        if memoryview(data).nbytes != pages.bytes:
            raise ValueError(f"not the contents of {pages.pages} pages")
        failed = ffi.new("uint64_t *")
        result = lib.memory_write_runs(
            self._memory,
            ffi.from_buffer("uint64_t[]", bounds),
            len(bounds),
            ffi.from_buffer("uint8_t[]", data),
            failed,
        )
        if result < 0:
            raise self._error(f"process_vm_writev at {failed[0]:#x}", -result)

    def zero_runs(self, pages: PageSet) -> None:
        """Write zeros to ``pages``; raises as write_runs()."""
        bounds = pages.boundaries
        failed = ffi.new("uint64_t *")
        result = lib.memory_zero_runs(
            self._memory,
            ffi.from_buffer("uint64_t[]", bounds),
            len(bounds),
            failed,
        )
        if result < 0:
            raise self._error(f"process_vm_writev at {failed[0]:#x}", -result)

    def _error(self, call: str, number: int) -> KernelError | TaskVanished:
        if number == errno.ESRCH:
            return TaskVanished(self.pid)
        return KernelError(
            call, self.pid, errno.EFAULT if number == errno.EIO else number
        )


def _open_mem(pid: Pid) -> int:
    path = f"/proc/{pid}/mem"
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise TaskVanished(pid) from None
    except OSError as error:
        raise KernelError("open mem", pid, error.errno or 0) from None
