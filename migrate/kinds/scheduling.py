"""sched_setattr(2): policy, nice value, real-time priority, deadline, clamps.

read from   sched_getattr(2), made by the thread itself
rebuilt by  sched_setattr(2), made by the thread with its own rights

Not carried: a slice of its own under SCHED_OTHER and SCHED_BATCH, which the kernel
does not tell from the default one; what is used up of a deadline's budget.
"""

from __future__ import annotations

import errno
import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.remote import RemoteError
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period,
# util_min, util_max                                   linux/sched/types.h
_SCHED_ATTR: Final = struct.Struct("<IIQiIQQQII")
_SCHED_DEADLINE: Final = 6
_FLAG_UTIL_CLAMPS: Final = 0x60  # SCHED_FLAG_UTIL_CLAMP_MIN and _MAX
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What travels."""

    policy: int
    flags: int  # SCHED_FLAG_RESET_ON_FORK and the deadline's own
    nice: int
    priority: int
    runtime_ns: int  # these three of SCHED_DEADLINE only, otherwise 0
    deadline_ns: int
    period_ns: int
    util_min: int
    util_max: int


KIND = Kind("scheduling", 1, Scope.TASK, Scheduling, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell all of it."""
    return []


def dump(source: Source, tid: Tid) -> Scheduling:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[Scheduling]:
    """Ask together with others."""
    room = form.space(_SCHED_ATTR.size)
    at = batch.add("sched_getattr", 0, room, _SCHED_ATTR.size, 0)

    def read(results: Sequence[int]) -> Scheduling:
        must(form, "sched_getattr", results[at])
        return _scheduling(form.read(room, _SCHED_ATTR.size))

    return read


def restore(record: Scheduling, target: Target, tid: Tid) -> None:
    """Set it, if it is another. A nice value that needs a right stays as it is.

    Raises:
        CannotCarry: it runs by a policy that its owner may not have there.
    """
    remote = target.remote.on(tid)
    there = asked(remote, ask)
    if record == there:
        return
    flags = record.flags & ~_FLAG_UTIL_CLAMPS
    if (record.util_min, record.util_max) != (there.util_min, there.util_max):
        flags |= _FLAG_UTIL_CLAMPS
    attributes = _SCHED_ATTR.pack(
        _SCHED_ATTR.size,
        record.policy,
        flags,
        record.nice,
        record.priority,
        record.runtime_ns,
        record.deadline_ns,
        record.period_ns,
        record.util_min,
        record.util_max,
    )
    try:
        remote.syscall("sched_setattr", 0, attributes, 0)
    except RemoteError as error:
        if error.errno == errno.EPERM and record.policy == there.policy:
            _log.warning(
                "thread %d: its nice value %d needs CAP_SYS_NICE and stays at %d",
                tid,
                record.nice,
                there.nice,
            )
            return
        raise CannotCarry(
            KIND.name,
            f"Thread {tid} is scheduled by policy {record.policy} with priority "
            f"{record.priority}, which it may not have at the destination: "
            f"{errno.errorcode.get(error.errno or 0, error.errno)}.",
            pid=target.pid,
        ) from error


def _scheduling(attributes: bytes) -> Scheduling:
    record = Scheduling(*_SCHED_ATTR.unpack(attributes)[1:])
    if record.policy == _SCHED_DEADLINE:
        return record
    return Scheduling(
        policy=record.policy,
        flags=record.flags,
        # Real-time policies have no nice value of their own, SCHED_IDLE keeps one.
        nice=record.nice,
        priority=record.priority,
        runtime_ns=0,
        deadline_ns=0,
        period_ns=0,
        util_min=record.util_min,
        util_max=record.util_max,
    )
