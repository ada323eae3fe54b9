"""prctl(PR_SET_PDEATHSIG): the signal that a process gets when its parent ends.

read from   prctl(PR_GET_PDEATHSIG), made by the thread itself
rebuilt by  prctl(PR_SET_PDEATHSIG), made by the thread itself

The parent stays behind. At the destination its place is taken by the init of a pid
namespace of the process's own, which ends with it, so the signal is set; or by a
helper of ours, which ends when the process has arrived, and then it is left out:
it would kill a process whose parent, over there, still lives.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.asking import asked, must
from migrate.kernel.telling import nothing, told, told_one
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_PDEATHSIG: Final = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParentDeathSignal:
    """What travels."""

    signal: int  # 0: none


KIND = Kind(
    "parent_death_signal",
    1,
    Scope.TASK,
    ParentDeathSignal,
    # A change of credentials clears it (prctl(2)).
    after=("credentials",),
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell."""
    return []


def dump(source: Source, tid: Tid) -> ParentDeathSignal:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[ParentDeathSignal]:
    """Ask together with others."""
    room = form.space(4)
    at = batch.add("prctl", _PR_GET_PDEATHSIG, room, 0, 0, 0)

    def read(results: Sequence[int]) -> ParentDeathSignal:
        must(form, "prctl", results[at])
        return ParentDeathSignal(int.from_bytes(form.read(room, 4), "little"))

    return read


def restore(record: ParentDeathSignal, target: Target, tid: Tid) -> None:
    """Set it, where a parent's end means what it meant."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: ParentDeathSignal,
    there: ParentDeathSignal | None,
    remote: Remote,
    batch: Batch,
) -> Check:
    """Tell together with others."""
    if record.signal and not _has_own_init(remote.pid):
        _log.warning(
            "thread %d: signal %d at the end of its parent is left out, for the "
            "parent did not come along",
            remote.tid,
            record.signal,
        )
        return nothing
    return told_one(remote, batch, "prctl", _PR_SET_PDEATHSIG, record.signal, 0, 0, 0)


def _has_own_init(pid: Pid) -> bool:
    """Whether the parent is the first process of a pid namespace below ours."""
    parent = procfs.status(procfs.status(pid).parent)
    return len(parent.pids_in_namespaces) > 1 and parent.pids_in_namespaces[-1] == 1
