"""sched_setaffinity(2): which processors a thread may run on.

read from   sched_getaffinity(2), made by the thread itself
rebuilt by  sched_setaffinity(2), made by the thread itself

A thread that may run on every processor of the source may run on all that it is
given at the destination. Otherwise processor numbers mean the same there; those
that the destination does not have are left out, and if none is left it is not bound.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_MASK_BYTES: Final = 1024  # 8192 processors, as many as Linux knows (NR_CPUS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Affinity:
    """What travels; None: it is not bound."""

    processors: tuple[int, ...] | None


KIND = Kind("affinity", 1, Scope.TASK, Affinity, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no affinity that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> Affinity:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[Affinity]:
    """Ask together with others."""
    room = form.space(_MASK_BYTES)
    at = batch.add("sched_getaffinity", 0, _MASK_BYTES, room)

    def read(results: Sequence[int]) -> Affinity:
        size = must(form, "sched_getaffinity", results[at])
        allowed = _numbers(form.read(room, size))
        if allowed >= parse_list(_ONLINE.read_text(encoding="ascii")):
            return Affinity(None)
        return Affinity(tuple(sorted(allowed)))

    return read


def restore(record: Affinity, target: Target, tid: Tid) -> None:
    """Bind it to those processors that it may have here.

    Raises:
        CannotCarry: a number is no processor's.
    """
    if record.processors is None:
        return
    if not all(0 <= number < _MASK_BYTES * 8 for number in record.processors):
        raise CannotCarry(KIND.name, "The peer's processor numbers make no sense.")
    remote = target.remote.on(tid)
    here = _own(remote)
    wanted = here & set(record.processors)
    if wanted != set(record.processors):
        _log.warning(
            "thread %d: bound to processors %s at the source, to %s here",
            tid,
            ",".join(map(str, record.processors)),
            ",".join(map(str, sorted(wanted or here))),
        )
    if wanted and wanted != here:
        mask = sum(1 << number for number in wanted)
        remote.syscall(
            "sched_setaffinity", 0, _MASK_BYTES, mask.to_bytes(_MASK_BYTES, "little")
        )


def parse_list(text: str) -> set[int]:
    """The numbers in a list such as ``0-3,8`` (cpuset(7), "List format")."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _own(remote: Remote) -> set[int]:
    remote.reset()
    room = remote.space(_MASK_BYTES)
    size = remote.syscall("sched_getaffinity", 0, _MASK_BYTES, room)
    return _numbers(remote.read(room, size))


def _numbers(mask_bytes: bytes) -> set[int]:
    mask = int.from_bytes(mask_bytes, "little")
    return {number for number in range(mask.bit_length()) if mask >> number & 1}
