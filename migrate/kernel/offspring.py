"""Children of a stopped process, born by a call that it makes for us.

A child is seized at its birth (PTRACE_O_TRACEFORK) and stands still in its parent's
code, with a copy of its parent's memory and so of the workbench: what makes calls
there makes them here. It has its parent's ids but for its number, and can be given
others before it executes a program of its own.

The parent is told of the end of a child by SIGCHLD, which would wait for it until it
runs, and then tell of a child that it never had. So whoever ends one here takes the
signal back (`forget`).
"""

import os
import signal
import struct
from typing import Final

from migrate.kernel.remote import Remote, RemoteError
from migrate.kernel.syscalls import NUMBERS
from migrate.kernel.tracee import EVENT_EXEC, Tracee
from migrate.kernel.vdso import syscall_instruction
from precopy.errors import TaskVanished
from precopy.ids import Pid
from precopy.task_memory import TaskMemory

# struct clone_args of linux/sched.h, up to cgroup.
_CLONE_ARGS: Final = struct.Struct("<11Q")
_CLONE_VM: Final = 0x100
_NOW: Final = struct.pack("<qq", 0, 0)
_SIGSET_BYTES: Final = 8
_DEFAULT_ACTION: Final = bytes(32)  # SIG_DFL, no flags, no mask
_PR_SET_NAME: Final = 15
_WALL: Final = 0x40000000
_RLIMIT_CORE: Final = 4
_NO_LIMIT: Final = struct.pack("<QQ", 0, 0)


class Offspring:
    """A child that stands still: its threads (one), and calls that it makes."""

    def __init__(self, tracee: Tracee, remote: Remote, number: int) -> None:
        self.tracee = tracee
        self.remote = remote
        self.number = number  # as itself sees it

    @property
    def pid(self) -> Pid:
        """As we see it."""
        return self.tracee.pid


def bear(
    parent: Remote,
    number: int = 0,
    *,
    exit_signal: int = signal.SIGCHLD,
    shares_memory: bool = False,
) -> Offspring:
    """A child of the thread that ``parent`` makes calls of.

    ``number`` is its pid, 0 whatever is free. One that ``shares_memory`` is quickly
    made; it must end before its parent runs.

    Raises:
        RemoteError: EEXIST, the number is taken; EPERM, it is not ours to choose.
    """
    parent.reset()
    wanted = parent.space(8)
    parent.write(wanted, struct.pack("<Q", number))
    args = _CLONE_ARGS.pack(
        _CLONE_VM if shares_memory else 0,
        0,
        0,
        0,
        exit_signal,
        0,
        0,
        0,
        # A pointer without a size is EINVAL (kernel/fork.c).
        wanted if number else 0,
        int(bool(number)),
        0,
    )
    before = len(parent.born)
    own = parent.syscall("clone3", args, _CLONE_ARGS.size)
    (tid,) = parent.born[before:]
    del parent.born[before:]
    parent.reset()
    pid = Pid(tid)
    tracee = Tracee(pid, (), TaskMemory(pid))
    tracee.adopt(tid)
    remote = Remote(pid, tid, parent.bench, dies_with_us=True)
    return Offspring(tracee, remote, own)


def execute(tracee: Tracee, remote: Remote, path: bytes) -> None:
    """Have the only thread execute a program; it stops before its first instruction.

    ``remote`` is of no use afterwards, and closed.

    Raises:
        RemoteError: it could not; it is as it was.
        TaskVanished: it ended.
    """
    (tid,) = tracee.tids
    name = remote.bench.arguments
    vector = name + len(path) + 1 + -(len(path) + 1) % 8
    # argv holds the path and the null that ends it; envp only the null.
    remote.write(vector, struct.pack("<QQ", name, 0))
    remote.write(name, path + b"\0")
    before = tracee.registers(tid)
    calling = tracee.registers(tid)
    calling.rip = syscall_instruction(tracee.pid, remote.memory)
    calling.rax = NUMBERS["execve"]
    # -1: the restart logic must not take this for an interrupted call.
    calling.orig_rax = (1 << 64) - 1
    calling.rdi, calling.rsi, calling.rdx = name, vector, vector + 8
    tracee.set_registers(tid, calling)
    _to_syscall_stop(tracee)
    status = _to_syscall_stop(tracee)
    if status >> 16 != EVENT_EXEC:
        error = tracee.registers(tid).error
        tracee.set_registers(tid, before)
        raise RemoteError("execve", tracee.pid, error)
    # At this event the task is still inside execve(2), whose exit would overwrite
    # rax: one more stop, outside of it.
    tracee.interrupt(tid)
    tracee.resume(tid)
    if not os.WIFSTOPPED(tracee.wait(tid)):
        raise TaskVanished(tracee.pid)
    remote.memory.close()


def _to_syscall_stop(tracee: Tracee) -> int:
    (tid,) = tracee.tids
    while True:
        status = tracee.to_syscall_stop(tid)
        if not os.WIFSTOPPED(status):
            raise TaskVanished(tracee.pid)
        if status >> 16 or os.WSTOPSIG(status) == signal.SIGTRAP | 0x80:
            return status


def end(child: Offspring, status: int = signal.SIGKILL) -> None:
    """Have it end so that wait(2) gives ``status``; its parent is told.

    A core dump is not made, nor does the status tell of one.
    """
    (tid,) = child.tracee.tids
    number = status & 0x7F
    try:
        if number == 0:
            child.remote.syscall("exit_group", status >> 8)
        elif number != signal.SIGKILL:
            child.remote.syscall("prlimit64", 0, _RLIMIT_CORE, _NO_LIMIT, 0)
            child.remote.syscall(
                "rt_sigaction", number, _DEFAULT_ACTION, 0, _SIGSET_BYTES
            )
            child.tracee.set_mask(tid, 0)
            os.kill(child.pid, number)
            _to_signal_stop(child.tracee, number)
            child.tracee.resume(tid, number)
        else:
            child.tracee.kill()
    except TaskVanished:
        pass  # that is what was asked for
    child.tracee.reap()
    child.remote.memory.close()


def _to_signal_stop(tracee: Tracee, number: int) -> None:
    (tid,) = tracee.tids
    while True:
        tracee.resume(tid)
        status = tracee.wait(tid)
        if not os.WIFSTOPPED(status):
            raise TaskVanished(tracee.pid)
        if not status >> 16 and os.WSTOPSIG(status) == number:
            return


def reap(parent: Remote, number: int, exit_signal: int = signal.SIGCHLD) -> None:
    """Have the parent wait for a child that has ended, and forget that it has.

    One that nobody waits for (SIGCHLD ignored) needs nothing of this.
    """
    batch = parent.batch()
    batch.add("wait4", number, 0, _WALL, 0)
    batch.run(check=False)
    forget(parent, exit_signal)


def forget(parent: Remote, exit_signal: int = signal.SIGCHLD) -> None:
    """Take back the signal by which the parent was told of an end."""
    if exit_signal:
        batch = parent.batch()
        only = struct.pack("<Q", 1 << (exit_signal - 1))
        batch.add("rt_sigtimedwait", only, 0, _NOW, _SIGSET_BYTES)
        batch.run(check=False)


def name(child: Offspring, comm: bytes) -> None:
    """What it is called (prctl(PR_SET_NAME))."""
    child.remote.syscall("prctl", _PR_SET_NAME, comm[:15] + b"\0", 0, 0, 0)
