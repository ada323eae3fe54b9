"""The birth of a process with chosen ids, about to execute a chosen program.

native/skeleton.c does it; see there how sessions and groups come to their numbers.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from migrate.kernel import procfs
from migrate.kernel._native import ffi, lib
from migrate.kernel.syscalls import explain
from precopy.errors import TaskVanished
from precopy.ids import Pid

_STEPS: Final = {
    1: "open a pipe",
    2: "make a pid namespace",
    3: "start the init of a pid namespace",
    4: "make the session",
    5: "make the process group",
    6: "make the process",
}


class NotBorn(Exception):
    """The process could not be made with these ids; nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Numbers as the process itself will see them; all 0: whatever is free."""

    pid: int
    process_group: int
    session: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Who it will be: real, effective and saved ids, and groups."""

    uids: tuple[int, int, int]
    gids: tuple[int, int, int]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Birth:
    """A process that waits for a byte at ``go`` to execute its program.

    Closing ``go`` without one ends it. ``error`` has 4 bytes of errno if the program
    could not be executed, else nothing. Both descriptors are the caller's.
    """

    pid: Pid  # as we see it
    init: Pid | None  # of its own pid namespace, where it has one
    go: int
    error: int


def bear(
    executable: bytes, ids: Ids, owner: Owner, cgroup: int, *, new_namespace: bool
) -> Birth:
    """Make it, in the cgroup that ``cgroup`` is a directory descriptor of.

    Raises:
        NotBorn: a number is taken (here, in whatever role), or the host has no room.
    """
    plan = _plan(executable, ids, owner, cgroup, new_namespace)
    birth = ffi.new("struct skeleton_birth *")
    result = lib.skeleton_spawn(plan[0], birth)
    _reap_leaders(birth.pid, birth.init)
    if result < 0:
        step = _STEPS.get(birth.step, "start")
        raise NotBorn(
            f"A process with pid {ids.pid} cannot be born here (failed to {step}: "
            f"{explain(-result)})."
        )
    init = Pid(birth.init) if birth.init else None
    pid = Pid(birth.pid) if birth.pid else _descendant(Pid(birth.init), ids.pid)
    return Birth(pid, init, birth.go, birth.error)


def taken(numbers: Iterable[int]) -> bool:
    """Whether one of these numbers is in use here, in whatever role."""
    wanted = set(numbers)
    for pid in procfs.pids():
        try:
            stat = procfs.stat(pid)
            if wanted & {pid, stat.process_group, stat.session, *procfs.threads(pid)}:
                return True
        except TaskVanished:
            continue
    return False


def _plan(
    executable: bytes, ids: Ids, owner: Owner, cgroup: int, new_namespace: bool
) -> tuple[object, ...]:
    """The plan, and after it what it points to, which must live as long."""
    path = ffi.new("char[]", executable)
    groups = ffi.new("uint32_t[]", list(owner.groups))
    plan = ffi.new(
        "struct skeleton_plan *",
        {
            "executable": path,
            "cgroup": cgroup,
            "new_pid_namespace": int(new_namespace),
            "pid": ids.pid,
            "pgid": ids.process_group,
            "sid": ids.session,
            "uid": list(owner.uids),
            "gid": list(owner.gids),
            "groups": groups,
            "group_count": len(owner.groups),
        },
    )
    return plan, path, groups


def _reap_leaders(pid: int, init: int) -> None:
    """Reap the leaders that ended on the way to the process, and nobody else."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in (pid, init):
            return
        os.waitpid(found.si_pid, 0)


def _descendant(init: Pid, own_pid: int) -> Pid:
    """The process that its namespace calls own_pid, as we see it."""
    for child in procfs.children(init):
        if procfs.status(child).pids_in_namespaces[-1] == own_pid:
            return child
    raise NotBorn(f"The process {own_pid} ended at its birth.")
