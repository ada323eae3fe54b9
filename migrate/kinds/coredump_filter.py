"""/proc/PID/coredump_filter: which mappings a core dump holds.

read from   /proc/PID/coredump_filter (hex)      core(5)
rebuilt by  writing it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from migrate.kernel import procfs
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid


@dataclass(frozen=True, slots=True)
class CoredumpFilter:
    """What travels."""

    mask: int


KIND = Kind("coredump_filter", 1, Scope.PROCESS, CoredumpFilter)


def refuse(pid: Pid) -> list[str]:
    """There is no filter that cannot be carried."""
    return []


def dump(source: Source) -> CoredumpFilter:
    """Read it."""
    return CoredumpFilter(int(procfs.read(source.pid, "coredump_filter"), 16))


def restore(record: CoredumpFilter, target: Target) -> None:
    """Write it."""
    path = Path(f"/proc/{target.pid}/coredump_filter")
    path.write_text(f"{record.mask:#x}", encoding="ascii")
