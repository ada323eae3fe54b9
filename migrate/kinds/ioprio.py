"""ioprio_set(2): the priority of what a thread reads and writes.

read from   ioprio_get(2), made by the thread itself
rebuilt by  ioprio_set(2), made by the thread with its own rights

The real-time class needs CAP_SYS_ADMIN or CAP_SYS_NICE; without them it is left out.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.remote import RemoteError
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_WHO_PROCESS: Final = 1  # IOPRIO_WHO_PROCESS, though it means one thread
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IoPriority:
    """What travels."""

    priority: int  # class, hint and level; 0: it has none of its own


KIND = Kind("ioprio", 1, Scope.TASK, IoPriority, after=("scheduling",), in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no priority that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> IoPriority:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[IoPriority]:
    """Ask together with others."""
    at = batch.add("ioprio_get", _WHO_PROCESS, 0)

    def read(results: Sequence[int]) -> IoPriority:
        return IoPriority(must(form, "ioprio_get", results[at]))

    return read


def restore(record: IoPriority, target: Target, tid: Tid) -> None:
    """Set it, if it is another."""
    remote = target.remote.on(tid)
    if remote.syscall("ioprio_get", _WHO_PROCESS, 0) == record.priority:
        return
    try:
        remote.syscall("ioprio_set", _WHO_PROCESS, 0, record.priority)
    except RemoteError as error:
        if error.errno != errno.EPERM:
            raise
        _log.warning(
            "thread %d: its I/O priority %#x needs a right that it has not here",
            tid,
            record.priority,
        )
