"""Where a process keeps its code, data, heap, stack, arguments and environment.

read from   /proc/PID/stat, /proc/PID/auxv, brk(0) made by the process itself
rebuilt by  prctl(PR_SET_MM, PR_SET_MM_MAP), without exe_fd     prctl(2)

/proc/PID/cmdline and environ, the names [heap] and [stack], and where brk(2) goes
on, all come from here. /proc/PID/exe is right already: the skeleton is an exec of
the same file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
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

_PR_SET_MM: Final = 35
_PR_SET_MM_MAP: Final = 14
_MM_MAP: Final = struct.Struct("<11QQIi")  # struct prctl_mm_map, linux/prctl.h
_NO_EXE: Final = -1
_AUXV_BYTES_MAX: Final = 1024  # the kernel keeps some fifty words


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """What travels: (start, end) of each, and the auxiliary vector."""

    code: tuple[int, int]
    data: tuple[int, int]
    heap: tuple[int, int]  # its end is the program break, to the byte
    stack_start: int
    arguments: tuple[int, int]
    environment: tuple[int, int]
    auxv: bytes


KIND = Kind("memory_layout", 1, Scope.PROCESS, MemoryLayout, late=True)


def refuse(pid: Pid) -> list[str]:
    """There is no layout that cannot be carried."""
    return []


def dump(source: Source) -> MemoryLayout:
    """Read /proc, and ask for the break: stat does not show it."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[MemoryLayout]:
    """Ask together with others."""
    at = batch.add("brk", 0)

    def read(results: Sequence[int]) -> MemoryLayout:
        stat = procfs.stat(form.pid)
        return MemoryLayout(
            code=stat.code,
            data=stat.data,
            heap=(stat.brk_start, must(form, "brk", results[at])),
            stack_start=stat.stack_start,
            arguments=stat.arguments,
            environment=stat.environment,
            auxv=procfs.read(form.pid, "auxv"),
        )

    return read


def restore(record: MemoryLayout, target: Target) -> None:
    """Set it all at once; the kernel checks the whole.

    Raises:
        CannotCarry: the auxiliary vector is none.
    """
    told(target.remote, lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: MemoryLayout, there: MemoryLayout | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    if len(record.auxv) > _AUXV_BYTES_MAX or len(record.auxv) % 16:
        raise CannotCarry(KIND.name, "The peer's auxiliary vector is not one.")
    auxv = remote.space(_AUXV_BYTES_MAX)
    remote.write(auxv, record.auxv)
    layout = _MM_MAP.pack(
        *record.code,
        *record.data,
        *record.heap,
        record.stack_start,
        *record.arguments,
        *record.environment,
        auxv,
        len(record.auxv),
        _NO_EXE,
    )
    which = _PR_SET_MM, _PR_SET_MM_MAP
    return told_one(remote, batch, "prctl", *which, layout, len(layout), 0)
