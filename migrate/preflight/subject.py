"""The process that is looked at: what all of preflight needs of it, read once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from migrate.kernel import procfs
from migrate.kernel.procfs import FdView, Stat, Status
from precopy.address_space import AddressSpace
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid


@dataclass(frozen=True, slots=True)
class Subject:
    """One look at a process that runs on."""

    pid: Pid
    stat: Stat
    status: Status
    tasks: Mapping[Tid, Status]  # the leader's first
    space: AddressSpace  # with flags
    protection_keys: bool  # some of its memory has one: pkeys(7)
    views: tuple[FdView, ...]

    @classmethod
    def of(cls, pid: Pid) -> Self:
        """Look at ``pid``.

        Raises:
            TaskVanished: it is gone.
            PermissionError: we may not look.
        """
        tasks = {}
        for tid in procfs.threads(pid):
            try:
                tasks[tid] = procfs.status(pid, tid)
            except TaskVanished:
                continue  # that thread has ended
        smaps = procfs.read(pid, "smaps")
        return cls(
            pid,
            procfs.stat(pid),
            procfs.status(pid),
            tasks,
            procfs.parse_smaps(smaps),
            any(
                line.startswith(b"ProtectionKey:") and not line.endswith(b" 0")
                for line in smaps.split(b"\n")
            ),
            procfs.fds(pid),
        )


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two looks are at one file."""
    # Through a mapping, overlayfs shows the file below it: another device number.
    return os.path.samestat(one, other) or (
        (one.st_ino, one.st_size, one.st_mtime_ns)
        == (other.st_ino, other.st_size, other.st_mtime_ns)
    )
