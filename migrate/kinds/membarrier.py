"""membarrier(2): for which of its commands the process has registered.

read from   membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS), made by the process itself
rebuilt by  membarrier(MEMBARRIER_CMD_REGISTER_…), made by the process itself

An expedited command of a process that is not registered fails with EPERM, which
programs that registered at their start do not expect.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_GET_REGISTRATIONS: Final = 1 << 9  # linux/membarrier.h
_REGISTER: Final = (1 << 2, 1 << 4, 1 << 6, 1 << 8)


@dataclass(frozen=True, slots=True)
class Membarrier:
    """What travels."""

    registrations: int  # MEMBARRIER_CMD_REGISTER_…, or'ed


KIND = Kind("membarrier", 1, Scope.PROCESS, Membarrier, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell."""
    return []


def dump(source: Source) -> Membarrier | None:
    """Ask; None where nothing is registered, or the kernel cannot tell (before 6.3)."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[Membarrier | None]:
    """Ask together with others."""
    at = batch.add("membarrier", _GET_REGISTRATIONS, 0, 0)

    def read(results: Sequence[int]) -> Membarrier | None:
        if results[at] in (-errno.EINVAL, -errno.ENOSYS):
            return None
        registered = must(form, "membarrier", results[at])
        return Membarrier(registered) if registered else None

    return read


def restore(record: Membarrier, target: Target) -> None:
    """Register again; registering twice is registering once.

    Raises:
        CannotCarry: the kernel here does not have such a command.
    """
    batch = target.remote.batch()
    for command in _REGISTER:
        if record.registrations & command:
            batch.add("membarrier", command, 0, 0)
    if any(result < 0 for result in batch.run(check=False)):
        raise CannotCarry(
            KIND.name,
            "It has registered for a membarrier(2) that the kernel of the destination "
            "does not have.",
        )
