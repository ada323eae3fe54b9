"""/proc/PID/oom_score_adj: how soon the kernel kills a process to get memory.

read from   /proc/PID/oom_score_adj      proc_pid_oom_score_adj(5)
rebuilt by  writing it

Lowering it needs CAP_SYS_RESOURCE; without that it stays what it is there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from errno import EACCES, EPERM
from pathlib import Path
from typing import TYPE_CHECKING

from migrate.kernel import procfs
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OomScore:
    """What travels."""

    adjustment: int  # -1000 … 1000


KIND = Kind("oom_score", 1, Scope.PROCESS, OomScore)


def refuse(pid: Pid) -> list[str]:
    """There is no adjustment that cannot be carried."""
    return []


def dump(source: Source) -> OomScore:
    """Read it."""
    return OomScore(_read(source.pid))


def restore(record: OomScore, target: Target) -> None:
    """Write it, if it is another."""
    if _read(target.pid) == record.adjustment:
        return
    try:
        path = Path(f"/proc/{target.pid}/oom_score_adj")
        path.write_text(str(record.adjustment), encoding="ascii")
    except OSError as error:
        if error.errno not in (EACCES, EPERM):
            raise
        _log.warning(
            "pid %d: oom_score_adj could not be set to %d, which needs "
            "CAP_SYS_RESOURCE",
            target.pid,
            record.adjustment,
        )


def _read(pid: Pid) -> int:
    return int(procfs.read(pid, "oom_score_adj"))
