"""prctl(PR_SET_DUMPABLE): whether a process may dump core and be looked into.

read from   prctl(PR_GET_DUMPABLE), made by the process itself
rebuilt by  prctl(PR_SET_DUMPABLE), made by the process itself

Late, because /proc/PID of a process that is not dumpable belongs to root, and its
owner may not trace it: until then we must be able to.
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
    from precopy.ids import Pid

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_BY_ROOT_ONLY: Final = 2  # SUID_DUMP_ROOT: the kernel gives it, nobody can ask for it


@dataclass(frozen=True, slots=True)
class Dumpable:
    """What travels."""

    dumpable: bool


KIND = Kind(
    "dumpable",
    1,
    Scope.PROCESS,
    Dumpable,
    after=("filesystem", "limits", "memory_layout", "posix_timer"),
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell."""
    return []


def dump(source: Source) -> Dumpable:
    """Ask the process.

    Raises:
        CannotCarry: it came from a set-user-ID file or one that it may not read.
    """
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[Dumpable]:
    """Ask together with others."""
    at = batch.add("prctl", _PR_GET_DUMPABLE, 0, 0, 0, 0)

    def read(results: Sequence[int]) -> Dumpable:
        value = must(form, "prctl", results[at])
        if value == _BY_ROOT_ONLY:
            raise CannotCarry(
                KIND.name,
                f"pid {form.pid} is dumpable by root only (fs.suid_dumpable), as "
                "set-user-ID programs are: that cannot be set again.",
                pid=form.pid,
            )
        return Dumpable(value == 1)

    return read


def restore(record: Dumpable, target: Target) -> None:
    """Set it."""
    told(target.remote, lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: Dumpable, there: Dumpable | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    dumpable = int(record.dumpable)
    return told_one(remote, batch, "prctl", _PR_SET_DUMPABLE, dumpable, 0, 0, 0)
