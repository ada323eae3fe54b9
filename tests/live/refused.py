"""A process that cannot go, and what preflight says of it."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from migrate import preflight
from migrate.errors import Reason
from migrate.kernel import lineage, procfs
from precopy.errors import TaskVanished
from precopy.ids import Pid
from tests.live.victim import Victim, running

# What a victim needs to make system calls that Python has no name for.
CALLS: Final = """
import ctypes, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.syscall.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_long] * 5]
def call(number, *words):
    words = [ctypes.c_long(w) if isinstance(w, int) else w for w in words]
    result = libc.syscall(ctypes.c_long(number), *words)
    assert result >= 0, (number, ctypes.get_errno())
    return result
def address(size=4096, prot=3, flags=0x22, fd=-1):
    result = libc.mmap(None, size, prot, flags, fd, 0)
    assert result != 2**64 - 1, ctypes.get_errno()
    return result
"""


@contextmanager
def alone(arrange: str = "", command: Sequence[str] = ()) -> Iterator[Victim]:
    """A victim of a session of its own, whose descriptors are pipes to us."""
    with running(
        arrange, command, stderr=subprocess.DEVNULL, start_new_session=True
    ) as victim:
        yield victim


def refusals(pid: int) -> list[Reason]:
    """What preflight says, with a look whether it is written as it must be."""
    reasons = preflight.reasons(Pid(pid))
    family = {pid}
    with suppress(TaskVanished):
        family |= {relative.pid for relative in lineage.family(Pid(pid))}
    for reason in reasons:
        assert reason.pid in family and reason.message.endswith("."), reason
        assert reason.message.isprintable(), reason
    assert len(set(reasons)) == len(reasons)
    return reasons


def sentence(pid: int, kind: str) -> str:
    """What is said about ``kind``, of which there is one refusal."""
    found = refusals(pid)
    (message,) = [reason.message for reason in found if reason.kind == kind] or [
        f"nothing, but {[reason.kind for reason in found]}"
    ]
    return message


def condition(pid: Pid) -> tuple[object, ...]:
    """All that a look must leave as it is."""
    status = procfs.status(pid)
    return (
        status.tracer,
        status.signals,
        status.threads,
        procfs.read_maps(pid),
        procfs.fds(pid),
        procfs.cgroups(pid),
        procfs.children(pid),
        procfs.namespaces(pid),
    )
