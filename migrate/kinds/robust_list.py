"""set_robust_list(2): the list of locks that the kernel frees for a dead thread.

read from   get_robust_list(2), from outside
rebuilt by  set_robust_list(2), made by the thread itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import syscalls
from migrate.kernel.telling import told, told_one
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_HEAD_BYTES: Final = 24  # sizeof(struct robust_list_head): any other is EINVAL
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class RobustList:
    """What travels."""

    head: int  # 0: none


KIND = Kind("robust_list", 1, Scope.TASK, RobustList)


def refuse(pid: Pid) -> list[str]:
    """There is no robust list that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> RobustList:
    """Ask the kernel; who may trace the thread may."""
    words = bytearray(2 * _WORD_BYTES)
    head = syscalls.address_of(words)
    syscalls.raw("get_robust_list", tid, head, head + _WORD_BYTES, pid=source.pid)
    return RobustList(int.from_bytes(words[:_WORD_BYTES], "little"))


def restore(record: RobustList, target: Target, tid: Tid) -> None:
    """Set it; the kernel looks at it when the thread ends, not before."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: RobustList, there: RobustList | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    return told_one(remote, batch, "set_robust_list", record.head, _HEAD_BYTES)
