"""File locks that processes gave up in the freeze, and how they get them back.

What was given up is kept beside the journal, and written there before (``entrust``).
So whoever goes on with a departure takes the locks back before they run again,
also when its mover has died in between.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Final

import msgspec

from migrate.brake import Brake
from migrate.kernel import procfs
from migrate.kernel.cgroups import Leaf
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from migrate.kinds import file_lock
from migrate.kinds.file_lock import FileLocks
from migrate.kinds.kind import CannotCarry
from precopy.errors import TaskVanished
from precopy.ids import Pid

PATIENCE_S: Final = 2.0
# Nobody waits for a process that was found: its copy may be ended by an agent that has
# to be started first.
_PATIENCE_OF_FINDERS_S: Final = 10.0
_AGAIN_S: Final = 0.005


class _Lender(msgspec.Struct, frozen=True, array_like=True):
    """A process that gave up locks."""

    pid: int
    start_ticks: int  # proc_pid_stat(5), field 22
    locks: FileLocks


def encode(lent: Mapping[Pid, FileLocks]) -> bytes:
    """What take_back() reads, of any number of locks.

    Raises:
        TaskVanished: one of the processes has ended.
    """
    return msgspec.msgpack.encode(
        [
            _Lender(pid, procfs.stat(pid).start_time_ticks, locks)
            for pid, locks in lent.items()
        ]
    )


def take_back(leaf: str, lent: bytes) -> tuple[str, ...]:
    """Have the processes take their locks again; a sentence for each that is lost.

    They may be frozen in ``leaf``. All in it is thawed, held by ptrace, and runs
    when this returns.

    Raises:
        KernelError: somebody else traces one; all is as it was.
    """
    try:
        lenders = msgspec.msgpack.decode(lent, type=list[_Lender])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()  # whoever wrote it died over it, and nothing was given up yet
    lost: list[CannotCarry] = []
    with ExitStack() as holding:
        held = {pid: _hold(pid, holding) for pid in _members(leaf, lenders)}
        _thaw(leaf)
        for one in lenders:
            tracee = held.get(Pid(one.pid))
            if tracee is not None:
                lost += _taken(tracee, one.locks)
    return tuple(one.message for one in lost)


def _members(leaf: str, lenders: list[_Lender]) -> set[Pid]:
    """All that a thaw would let go, and who has been let go by now."""
    members = {Pid(one.pid) for one in lenders if _is_alive(one)}
    try:
        with closing(Leaf(leaf)) as found:
            members.update(found.members())
    except FileNotFoundError:
        pass
    return members


def _is_alive(lender: _Lender) -> bool:
    """Whether it is there, it and no other of that pid."""
    try:
        return procfs.stat(Pid(lender.pid)).start_time_ticks == lender.start_ticks
    except TaskVanished:
        return False


def _hold(pid: Pid, holding: ExitStack) -> Tracee | None:
    try:
        return holding.enter_context(Brake(pid, Sleepers(pid)).holding())
    except TaskVanished:
        return None  # it was killed where it was frozen, and its locks with it


def _taken(tracee: Tracee, locks: FileLocks) -> list[CannotCarry]:
    try:
        with tracee.remote() as remote:
            return patiently(
                lambda: file_lock.reacquire(remote, locks), _PATIENCE_OF_FINDERS_S
            )
    except TaskVanished:
        return []


def patiently(
    take: Callable[[], list[CannotCarry]], patience_s: float = PATIENCE_S
) -> list[CannotCarry]:
    """Take them again and again until all were had; what could not be had in time.

    The copy at the destination may hold them until it has heard that it is to end.
    """
    deadline_s = time.monotonic() + patience_s
    while (lost := take()) and time.monotonic() < deadline_s:
        time.sleep(_AGAIN_S)  # nobody tells us: only fcntl(2) of its own would wait
    return lost


def _thaw(leaf: str) -> None:
    """A thread in a frozen cgroup makes no injected call."""
    try:
        with closing(Leaf(leaf)) as frozen:
            frozen.thaw()
    except FileNotFoundError:
        return  # somebody has come this far already
