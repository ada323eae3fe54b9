"""Signals sent to the process and not yet delivered to any of its threads.

read from   PTRACE_PEEKSIGINFO with PTRACE_PEEKSIGINFO_SHARED, ptrace(2)
rebuilt by  rt_sigqueueinfo(2) by the process to itself, while it blocks them all

A process may send itself any siginfo, that of the kernel included; nobody else may
(rt_sigqueueinfo(2), EPERM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import procfs, signal_queue
from migrate.kernel.telling import all_must, nothing, told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid


@dataclass(frozen=True, slots=True)
class PendingSignals:
    """What travels: each siginfo_t, in the order of arrival."""

    infos: tuple[bytes, ...]


KIND = Kind(
    "pending_signals",
    1,
    Scope.PROCESS,
    PendingSignals,
    # An action that is set to SIG_IGN drops what is pending (POSIX, 2.4.3). An alarm
    # that goes off while all this is asked has to be in one of the two.
    after=("signal_actions", "interval_timers"),
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """There is no pending signal that cannot be carried."""
    return []


def dump(source: Source) -> PendingSignals:
    """Look at the queue without taking anything from it."""
    # In this order: what comes while we look is a siginfo without a bit.
    timers = source.timers
    status = procfs.read(source.pid, "status")
    seen = source.tracee.peek_signals(source.tracee.tids[0], shared=True)
    infos = timers.settled(seen, None)
    infos += signal_queue.bare(signal_queue.pending(status, "ShdPnd"), seen)
    return PendingSignals(tuple(infos))


def ask(form: Form, batch: Batch) -> Reader[PendingSignals]:
    """Ask together with others; what is in the queue only dump() can tell."""
    empty = signal_queue.ask_whether_empty(form, batch)

    def read(results: Sequence[int]) -> PendingSignals:
        empty(results)
        return PendingSignals(())

    return read


def must_look(source: Source) -> bool:
    """With timers: what they have sent is told of the moment of which they are told."""
    return bool(source.timers.timers)


def restore(record: PendingSignals, target: Target) -> None:
    """Queue what is not queued yet. Every thread blocks every signal meanwhile.

    Raises:
        CannotCarry: a siginfo is not one.
    """
    there = PendingSignals(
        tuple(target.tracee.peek_signals(target.tracee.tids[0], shared=True))
    )
    told(target.remote, lambda remote, batch: tell(record, there, remote, batch))


def tell(
    record: PendingSignals, there: PendingSignals, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    if not record.infos:
        return nothing
    own_pid, _ = remote.own_ids()
    try:
        lacking = signal_queue.lacking(record.infos, there.infos)
    except signal_queue.NotASiginfo as error:
        why = "A pending signal of the peer is not one."
        raise CannotCarry(KIND.name, why) from error
    calls = [(own_pid, number, info) for number, info in lacking]
    return all_must(remote, batch, "rt_sigqueueinfo", calls)
