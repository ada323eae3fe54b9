"""set_robust_list(2): the list of locks that the kernel frees for a dead thread.

read from   get_robust_list(2), made by the thread itself
rebuilt by  set_robust_list(2), made by the thread itself
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

_HEAD_BYTES: Final = 24  # sizeof(struct robust_list_head): any other is EINVAL
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class RobustList:
    """What travels."""

    head: int  # 0: none


KIND = Kind("robust_list", 1, Scope.TASK, RobustList, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no robust list that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> RobustList:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[RobustList]:
    """Ask together with others."""
    head = form.space(2 * _WORD_BYTES)
    at = batch.add("get_robust_list", 0, head, head + _WORD_BYTES)

    def read(results: Sequence[int]) -> RobustList:
        must(form, "get_robust_list", results[at])
        return RobustList(int.from_bytes(form.read(head, _WORD_BYTES), "little"))

    return read


def restore(record: RobustList, target: Target, tid: Tid) -> None:
    """Set it; the kernel looks at it when the thread ends, not before."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: RobustList, there: RobustList | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    return told_one(remote, batch, "set_robust_list", record.head, _HEAD_BYTES)
