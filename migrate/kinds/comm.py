"""prctl(PR_SET_NAME): the name of a thread, 15 bytes of anything but NUL.

read from   prctl(PR_GET_NAME), made by the thread itself
rebuilt by  prctl(PR_SET_NAME), made by the thread itself: nobody else may
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import told, told_one
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_SET_NAME: Final = 15
_PR_GET_NAME: Final = 16
_NAME_BYTES_MAX: Final = 15  # TASK_COMM_LEN less the NUL


@dataclass(frozen=True, slots=True)
class Comm:
    """What travels."""

    name: bytes


KIND = Kind("comm", 1, Scope.TASK, Comm, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no name that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> Comm:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[Comm]:
    """Ask together with others."""
    room = form.space(_NAME_BYTES_MAX + 1)
    at = batch.add("prctl", _PR_GET_NAME, room, 0, 0, 0)

    def read(results: Sequence[int]) -> Comm:
        must(form, "prctl", results[at])
        return Comm(form.read(room, _NAME_BYTES_MAX + 1).partition(b"\0")[0])

    return read


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
