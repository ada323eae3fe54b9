"""prctl(PR_SET_NAME): the name of a thread, 15 bytes of anything but NUL.

read from   /proc/PID/task/TID/comm      proc_tid_comm(5)
rebuilt by  prctl(PR_SET_NAME), made by the thread itself: nobody else may
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.telling import told, told_one
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_SET_NAME: Final = 15
_NAME_BYTES_MAX: Final = 15  # TASK_COMM_LEN less the NUL


@dataclass(frozen=True, slots=True)
class Comm:
    """What travels."""

    name: bytes


KIND = Kind("comm", 1, Scope.TASK, Comm)


def refuse(pid: Pid) -> list[str]:
    """There is no name that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> Comm:
    """Read it; the kernel adds a newline, of which the name may have its own."""
    return Comm(procfs.read(source.pid, f"task/{tid}/comm").removesuffix(b"\n"))


def restore(record: Comm, target: Target, tid: Tid) -> None:
    """Have the thread name itself.

    Raises:
        CannotCarry: it is too long for a name, or holds a NUL.
    """
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(record: Comm, there: Comm | None, remote: Remote, batch: Batch) -> Check:
    """Tell together with others."""
    if len(record.name) > _NAME_BYTES_MAX or b"\0" in record.name:
        raise CannotCarry(KIND.name, "The peer's thread name is not one.")
    name = record.name + b"\0"
    return told_one(remote, batch, "prctl", _PR_SET_NAME, name, 0, 0, 0)
