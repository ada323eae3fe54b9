"""What can go wrong between us and the memory of another process."""

import errno

from precopy.ids import Pid


class PrecopyError(Exception):
    """The memory of a process could not be followed, read or written."""


class KernelError(OSError):
    """The kernel refused a call that we made about a process."""

    def __init__(self, call: str, pid: Pid, number: int) -> None:
        super().__init__(number, f"{call}(pid {pid})")
        self.call = call
        self.pid = pid

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, f"errno {self.errno}")
        return f"{self.call}(pid {self.pid}): {name}"


class TaskVanished(PrecopyError):
    """The process exited or called execve(2): its memory is no more."""

    def __init__(self, pid: Pid) -> None:
        super().__init__(f"the memory of process {pid} is gone: it exited or exec'd")
        self.pid = pid


class GuardRegions(PrecopyError):
    """The process holds guard pages (MADV_GUARD_INSTALL), which cannot be carried.

    ``regions`` are the byte ranges (start, end).
    """

    def __init__(self, pid: Pid, regions: tuple[tuple[int, int], ...]) -> None:
        first = ", ".join(f"{start:#x}-{end:#x}" for start, end in regions[:4])
        more = f" and {len(regions) - 4} more" if len(regions) > 4 else ""
        super().__init__(
            f"process {pid} has guard pages (madvise MADV_GUARD_INSTALL) at "
            f"{first}{more}, which cannot be carried"
        )
        self.pid = pid
        self.regions = regions


class PageStreamError(PrecopyError):
    """A batch of pages is not what a source would send."""
