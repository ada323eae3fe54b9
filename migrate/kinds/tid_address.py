"""set_tid_address(2): the word that the kernel clears, and wakes, when a thread ends.

read from   prctl(PR_GET_TID_ADDRESS), made by the thread itself
rebuilt by  set_tid_address(2), made by the thread itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import told, told_one
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_GET_TID_ADDRESS: Final = 40
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class TidAddress:
    """What travels."""

    pointer: int  # 0: none


KIND = Kind("tid_address", 1, Scope.TASK, TidAddress, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no such address that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> TidAddress:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[TidAddress]:
    """Ask together with others."""
    room = form.space(_WORD_BYTES)
    at = batch.add("prctl", _PR_GET_TID_ADDRESS, room, 0, 0, 0)

    def read(results: Sequence[int]) -> TidAddress:
        must(form, "prctl", results[at])
        return TidAddress(int.from_bytes(form.read(room, _WORD_BYTES), "little"))

    return read


def restore(record: TidAddress, target: Target, tid: Tid) -> None:
    """Set it."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: TidAddress, there: TidAddress | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    return told_one(remote, batch, "set_tid_address", record.pointer)
