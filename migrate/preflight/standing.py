"""Who the process is: whether it can be moved at all, and whom it belongs with.

Somebody traces it, it shares its memory with another: then a part of a whole cannot
go.
"""

import os
from collections.abc import Collection, Iterator
from typing import Final

from migrate.errors import Reason, printable
from migrate.kernel import lineage, procfs
from migrate.kernel.syscalls import raw
from migrate.preflight.subject import Subject
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid

_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_ELF_HEADER_BYTES: Final = 20
_ELF_CLASS_64: Final = 2
_ELF_MACHINE_X86_64: Final = 62
_PTS_MAJOR: Final = 136  # Documentation/admin-guide/devices.txt

# linux/kcmp.h; what clone(2) can share between two processes.
_KCMP_SYSVSEM: Final = 6
_SHARED: Final = (
    (1, "its memory (CLONE_VM)"),
    (2, "its descriptors (CLONE_FILES)"),
    (3, "its working directory (CLONE_FS)"),
    (4, "its signal handlers (CLONE_SIGHAND)"),
)


def no_such_process(pid: Pid) -> Reason:
    """It is not there, or not any more."""
    return Reason(
        "process", f"There is no process with pid {pid}. Look it up again.", pid
    )


def not_a_candidate(pid: Pid, own_pids: Collection[Pid]) -> Reason | None:
    """Why there is no need to look any further.

    Raises:
        TaskVanished: there is no such process.
    """
    status = procfs.status(pid)
    stat = procfs.stat(pid)
    name = printable(status.name)
    message = None
    if pid in own_pids or pid == os.getpid():
        message = f"pid {pid} is migrate itself, which does the moving and stays here."
    elif int(status.tgid) != pid:
        message = (
            f"{pid} is a thread of process {status.tgid} ({name}). Name the process: "
            "its threads go with it."
        )
    elif pid == 1:
        message = (
            f"pid 1 is the init of this host ({name}): without it nothing here would "
            "run. Name another process."
        )
    elif status.kernel_thread or stat.flags & _PF_KTHREAD:
        message = f"pid {pid} ({name}) is a kernel thread: it is part of this kernel."
    elif status.state in "ZX":
        message = (
            f"pid {pid} ({name}) has ended already: it is a zombie until its parent, "
            f"pid {status.parent}, waits for it."
        )
    return Reason("process", message, pid) if message else None


def reasons(subject: Subject, family: Collection[Pid] = ()) -> Iterator[Reason]:
    """What is in the way in what the process is and whom it belongs to.

    Whoever was born to its ``family`` since that was looked at is passed over.
    """
    yield from _traced(subject)
    yield from _state(subject)
    yield from _binary(subject)
    yield from _terminal(subject)
    yield from _shared(subject, family)


def _traced(subject: Subject) -> Iterator[Reason]:
    tracers = {status.tracer for status in subject.tasks.values()} - {0}
    for tracer in sorted(tracers):
        if _is_ours(tracer):
            continue  # it joined a tree of which we hold all
        yield Reason(
            "tracer",
            f"pid {subject.pid} is traced by pid {tracer} ({_name(tracer)}), and a "
            "process has one tracer. Detach it first.",
            subject.pid,
        )


def _is_ours(tracer: Pid) -> bool:
    """Whether it is one of our own threads."""
    try:
        return procfs.status(tracer).tgid == os.getpid()
    except TaskVanished:
        return True  # it ended, and traces nobody any more


def _state(subject: Subject) -> Iterator[Reason]:
    pid = subject.pid
    if subject.status.state == "T":
        yield Reason(
            "stopped",
            f"pid {pid} is stopped by a signal (SIGSTOP or job control), which is not "
            f"carried yet. Let it run first: kill -CONT {pid}.",
            pid,
        )
    if subject.status.core_dumping:
        yield Reason(
            "process", f"pid {pid} is dumping core: it will be gone in a moment.", pid
        )


def _binary(subject: Subject) -> Iterator[Reason]:
    pid = subject.pid
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            header = file.read(_ELF_HEADER_BYTES)
    except (FileNotFoundError, ProcessLookupError):
        raise TaskVanished(pid) from None
    if header[:4] != b"\x7fELF":
        return
    if header[4] != _ELF_CLASS_64 or header[18] != _ELF_MACHINE_X86_64:
        yield Reason(
            "32-bit",
            f"pid {pid} is a 32-bit program ({printable(procfs.link(pid, 'exe'))}): "
            "only those for x86-64 can be moved.",
            pid,
        )


def _terminal(subject: Subject) -> Iterator[Reason]:
    terminal = subject.stat.terminal
    if terminal:
        major, minor = os.major(terminal), os.minor(terminal)
        name = f"/dev/pts/{minor}" if major == _PTS_MAJOR else f"tty {major}:{minor}"
        yield Reason(
            "terminal",
            f"pid {subject.pid} has a controlling terminal ({name}), which stays on "
            "this host. Start the program with setsid(1), away from a terminal.",
            subject.pid,
        )


def _shared(subject: Subject, family: Collection[Pid]) -> Iterator[Reason]:
    pid = subject.pid
    for other in procfs.pids():
        if other == pid:
            continue
        for resource, what in _SHARED:
            if _same(pid, other, resource):
                if other not in family and lineage.descends(other, {pid}):
                    break  # born since; it will be looked at as well
                yield Reason(
                    "sharing",
                    f"pid {pid} shares {what} with pid {other} ({_name(other)}), "
                    "another process. Move it when that has ended.",
                    pid,
                )
        if _tracer_of(other) == pid:
            yield Reason(
                "tracer",
                f"pid {pid} traces pid {other} ({_name(other)}). Let it detach first.",
                pid,
            )
    # Of this kind two tasks have none at all more often than they have the same one.
    # We never asked for SEM_UNDO (semop(2)): who differs from us may have something.
    # The first thread of a program makes it an empty list (CLONE_SYSVSEM, clone(2)),
    # which only matters where there is a semaphore at all (sysvipc(5)).
    if _semaphores_exist() and not _same(
        pid, Pid(os.getpid()), _KCMP_SYSVSEM, unknown=True
    ):
        yield Reason(
            "semaphore",
            f"pid {pid} may hold a System V semaphore that is to be undone when it "
            "ends (SEM_UNDO), which cannot be carried (see docs/kinds.md).",
            pid,
        )


def _semaphores_exist() -> bool:
    with open("/proc/sysvipc/sem", "rb") as sets:
        return len(sets.readlines()) > 1  # the first line is the heading


def _same(pid: Pid, other: Pid, resource: int, *, unknown: bool = False) -> bool:
    """Whether two processes have the same one; ``unknown`` where we may not ask."""
    try:
        return raw("kcmp", pid, other, resource, 0, 0, pid=pid) == 0
    except KernelError:
        return unknown  # the other ended, or is none of ours to trace


def _tracer_of(pid: Pid) -> Pid:
    """Who traces it, as seen at its leader: whole processes are traced, as a rule."""
    try:
        return procfs.status(pid).tracer
    except TaskVanished:
        return Pid(0)


def _name(pid: Pid) -> str:
    try:
        return printable(procfs.stat(pid).name)
    except TaskVanished:
        return "gone by now"
