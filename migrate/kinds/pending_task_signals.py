"""Signals sent to one thread and not yet delivered to it.

read from   PTRACE_PEEKSIGINFO, ptrace(2)
rebuilt by  rt_tgsigqueueinfo(2) by the thread to itself, while it blocks them all
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.asking import Unsaid, must
from migrate.kernel.telling import all_must, nothing, told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_SIGINFO_BYTES: Final = 128
_SIGNAL_MAX: Final = 64
_SET_BYTES: Final = 8
_MASK: Final = re.compile(rb"^SigPnd:\t([0-9a-f]{16})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PendingTaskSignals:
    """What travels: each siginfo_t, in the order of arrival."""

    infos: tuple[bytes, ...]


KIND = Kind(
    "pending_task_signals",
    1,
    Scope.TASK,
    PendingTaskSignals,
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """There is no pending signal that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> PendingTaskSignals:
    """Look at the queue without taking anything from it."""
    # In this order: what comes while we look is a siginfo without a bit.
    timers = source.timers
    found = _MASK.search(procfs.read(source.pid, f"task/{tid}/status"))
    mask = int(found[1], 16) if found else 0
    seen = source.tracee.peek_signals(tid, shared=False)
    infos = timers.settled(seen, tid)
    # A signal that found no memory for its siginfo is only a bit in the mask; on
    # delivery the kernel makes up SI_USER with pid 0 (collect_signal()).
    queued = {int.from_bytes(info[:4], "little") for info in seen}
    bare = (n for n in range(1, _SIGNAL_MAX + 1) if mask >> (n - 1) & 1)
    infos += [
        number.to_bytes(_SIGINFO_BYTES, "little")
        for number in bare
        if number not in queued
    ]
    return PendingTaskSignals(tuple(infos))


def ask(form: Form, batch: Batch) -> Reader[PendingTaskSignals]:
    """Ask together with others; what is in the queue only dump() can tell."""
    room = form.space(_SET_BYTES)
    at = batch.add("rt_sigpending", room, _SET_BYTES)

    def read(results: Sequence[int]) -> PendingTaskSignals:
        must(form, "rt_sigpending", results[at])
        # Of the process and of the thread alike; all are blocked in a batch.
        if any(form.read(room, _SET_BYTES)):
            raise Unsaid
        return PendingTaskSignals(())

    return read


def must_look(source: Source) -> bool:
    """With timers: what they have sent is told of the moment of which they are told."""
    return bool(source.timers.timers)


def restore(record: PendingTaskSignals, target: Target, tid: Tid) -> None:
    """Queue what is not queued yet. The thread blocks every signal meanwhile.

    Raises:
        CannotCarry: a siginfo is not one.
    """
    there = PendingTaskSignals(tuple(target.tracee.peek_signals(tid, shared=False)))
    told(
        target.remote.on(tid), lambda remote, batch: tell(record, there, remote, batch)
    )


def tell(
    record: PendingTaskSignals, there: PendingTaskSignals, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    if not record.infos:
        return nothing
    queued = Counter(there.infos)
    ids = remote.own_ids()
    calls = []
    for info in record.infos:
        number = int.from_bytes(info[:4], "little")
        if len(info) != _SIGINFO_BYTES or not 1 <= number <= _SIGNAL_MAX:
            raise CannotCarry(KIND.name, "A pending signal of the peer is not one.")
        if queued[info]:
            queued[info] -= 1
        else:
            calls.append((*ids, number, info))
    return all_must(remote, batch, "rt_tgsigqueueinfo", calls)
