"""personality(2): the execution domain and its flags, one for each thread.

read from   personality(2), made by the thread itself
rebuilt by  personality(2), made by the thread itself

Late: READ_IMPLIES_EXEC and MMAP_PAGE_ZERO would change what restoring maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
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

_ASK: Final = 0xFFFF_FFFF
_DOMAIN: Final = 0xFF
_CARRIED: Final = frozenset({0, 8})  # PER_LINUX; PER_LINUX32, for uname(2) only


@dataclass(frozen=True, slots=True)
class Personality:
    """What travels."""

    persona: int


KIND = Kind("personality", 1, Scope.TASK, Personality, late=True, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """Another system's personality changes how signals and paths work."""
    return [
        f"thread {tid} of pid {pid} has the personality {persona:#x}, which is not "
        "that of a Linux program."
        for tid in procfs.threads(pid)
        if (persona := _read(pid, tid)) & _DOMAIN not in _CARRIED
    ]


def dump(source: Source, tid: Tid) -> Personality:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[Personality]:
    """Ask together with others."""
    at = batch.add("personality", _ASK)

    def read(results: Sequence[int]) -> Personality:
        return Personality(must(form, "personality", results[at]))

    return read


def restore(record: Personality, target: Target, tid: Tid) -> None:
    """Set it, if it is another."""
    if _read(target.pid, tid) != record.persona:
        told(
            target.remote.on(tid),
            lambda remote, batch: tell(record, None, remote, batch),
        )


def tell(
    record: Personality, there: Personality | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    return told_one(remote, batch, "personality", record.persona)


def _read(pid: Pid, tid: Tid) -> int:
    return int(procfs.read(pid, f"task/{tid}/personality"), 16)
