"""The cgroup of an arrival, while it is nobody's yet but its worker's.

The name says whose: ``migrate-arrival-NS-PID-START-…``, where NS is the inode of the
pid namespace in which the worker PID started at START (proc_pid_stat(5), field 22).
Two hosts of a test bed share one cgroup file system, and pids come again; so neither
a pid alone nor a look into our own /proc could say that a leaf is left over.

What becomes of an arrival is in its journal (see ``recovery``). Here is what has none:
a frozen leaf without a journal holds a process that never said that it runs, and
killing it loses nothing, since the source still has its own.
"""

import os
import re
from typing import Final

from migrate.kernel import cgroups, procfs
from precopy.errors import TaskVanished
from precopy.ids import Pid

_NAME: Final = re.compile(r"migrate-arrival-(\d+)-(\d+)-(\d+)(?:-[0-9a-z]+)?")
_EMPTY_WITHIN_S: Final = 5.0


def transaction(suffix: str = "") -> str:
    """What a worker makes its leaf with (``cgroups.Leaf.create``).

    ``suffix`` tells several of one worker apart: lower-case letters and digits.
    """
    return _signed("arrival", suffix)


def departure(suffix: str) -> str:
    """The same for whoever moves a process away; its journal names the leaf too."""
    return _signed("departure", suffix)


def _signed(what: str, suffix: str) -> str:
    own = Pid(os.getpid())
    name = f"{what}-{_pid_namespace()}-{own}-{procfs.stat(own).start_time_ticks}"
    return f"{name}-{suffix}" if suffix else name


def sweep() -> tuple[str, ...]:
    """Settle what dead workers left without a journal; give back their leaves."""
    left = tuple(path for path in cgroups.leaves() if _is_orphan(path))
    for path in left:
        _settle(path)
    return left


def _settle(path: str) -> None:
    """It runs if it does, and was never to if not."""
    try:
        leaf = cgroups.Leaf(path)
    except FileNotFoundError:
        return  # whoever was in it ended, or was sent home, meanwhile
    try:
        if leaf.is_frozen():
            leaf.kill()
            leaf.wait_empty(_EMPTY_WITHIN_S)
        leaf.dissolve()
    finally:
        leaf.close()


def _worker(path: str) -> Pid | None:
    """Whose leaf it is, if that is one of our pid namespace."""
    named = _NAME.fullmatch(path.rpartition("/")[2])
    if named is None or int(named[1]) != _pid_namespace():
        return None
    return Pid(int(named[2]))


def _is_orphan(path: str) -> bool:
    worker = _worker(path)
    if worker is None:
        return False
    started = int(path.rpartition("/")[2].split("-")[4])
    try:
        now = procfs.stat(worker)
    except TaskVanished:
        return True
    # A zombie has its pid until somebody waits for it, which may be never.
    return now.start_time_ticks != started or now.state in "ZX"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
