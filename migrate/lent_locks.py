"""File locks that a process gave up in the freeze, and how it gets them back.

What was given up is kept beside the journal, and written there before (``entrust``).
So whoever goes on with a departure takes the locks back before the process runs again,
also when its mover has died in between.
"""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

import msgspec

from migrate.brake import Brake
from migrate.kernel.cgroups import Leaf
from migrate.kernel.pidfds import PidFd
from migrate.kernel.sleepers import Sleepers
from migrate.kinds import file_lock
from migrate.kinds.file_lock import FileLocks
from migrate.kinds.kind import CannotCarry
from precopy.errors import TaskVanished
from precopy.ids import Pid

PATIENCE_S: Final = 2.0
_AGAIN_S: Final = 0.005


def encode(locks: FileLocks) -> bytes:
    """What take_back() reads, of any number of locks."""
    return msgspec.msgpack.encode(locks)


def take_back(pid: Pid, start_ticks: int, leaf: str, lent: bytes) -> tuple[str, ...]:
    """Have the process take its locks again; a sentence for each that it has lost.

    It may be frozen in ``leaf``. It is thawed, held by ptrace, and runs when this
    returns.

    Raises:
        KernelError: somebody else traces it; it is as it was.
    """
    try:
        locks = msgspec.msgpack.decode(lent, type=FileLocks)
    except msgspec.MsgspecError:
        return ()  # whoever wrote it died over it, and nothing was given up yet
    try:
        PidFd.open(pid, start_ticks).close()  # it, and no other of that pid
        with Brake(pid, Sleepers(pid)).holding() as tracee:
            _thaw(leaf)
            with tracee.remote() as remote:
                lost = patiently(lambda: file_lock.reacquire(remote, locks))
    except TaskVanished:
        return ()  # it was killed where it was frozen, and its locks with it
    return tuple(one.message for one in lost)


def patiently(take: Callable[[], list[CannotCarry]]) -> list[CannotCarry]:
    """Take them again and again until all were had; what could not be had in time.

    The copy at the destination may hold them until it has heard that it is to end.
    """
    deadline_s = time.monotonic() + PATIENCE_S
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
