"""System calls by name: the numbers, and those that Python itself cannot make.

numbers     arch/x86/entry/syscalls/syscall_64.tbl
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from migrate.kernel._native import ffi, lib
from precopy.errors import KernelError
from precopy.ids import Pid

NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "read": 0,
        "write": 1,
        "close": 3,
        "fstat": 5,
        "lseek": 8,
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "brk": 12,
        "rt_sigaction": 13,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "ioctl": 16,
        "pwrite64": 18,
        "pipe": 22,
        "mremap": 25,
        "madvise": 28,
        "dup2": 33,
        "nanosleep": 35,
        "getitimer": 36,
        "setitimer": 38,
        "getpid": 39,
        "recvmsg": 47,
        "socketpair": 53,
        "execve": 59,
        "exit": 60,
        "wait4": 61,
        "fcntl": 72,
        "flock": 73,
        "getcwd": 79,
        "chdir": 80,
        "fchdir": 81,
        "umask": 95,
        "getppid": 110,
        "setpgid": 109,
        "setsid": 112,
        "setreuid": 113,
        "setgroups": 116,
        "getgroups": 115,
        "setresuid": 117,
        "getresuid": 118,
        "setresgid": 119,
        "getresgid": 120,
        "setfsuid": 122,
        "setfsgid": 123,
        "capget": 125,
        "capset": 126,
        "rt_sigpending": 127,
        "rt_sigtimedwait": 128,
        "rt_sigqueueinfo": 129,
        "sigaltstack": 131,
        "personality": 135,
        "sched_setscheduler": 144,
        "mlock": 149,
        "munlock": 150,
        "modify_ldt": 154,
        "prctl": 157,
        "arch_prctl": 158,
        "chroot": 161,
        "gettid": 186,
        "futex": 202,
        "sched_setaffinity": 203,
        "sched_getaffinity": 204,
        "io_getevents": 208,
        "set_tid_address": 218,
        "restart_syscall": 219,
        "timer_create": 222,
        "timer_settime": 223,
        "timer_gettime": 224,
        "timer_getoverrun": 225,
        "timer_delete": 226,
        "clock_gettime": 228,
        "clock_nanosleep": 230,
        "exit_group": 231,
        "epoll_wait": 232,
        "epoll_ctl": 233,
        "tgkill": 234,
        "get_mempolicy": 239,
        "ioprio_set": 251,
        "ioprio_get": 252,
        "openat": 257,
        "unshare": 272,
        "set_robust_list": 273,
        "get_robust_list": 274,
        "tee": 276,
        "inotify_add_watch": 254,
        "inotify_rm_watch": 255,
        "epoll_pwait": 281,
        "timerfd_create": 283,
        "timerfd_settime": 286,
        "timerfd_gettime": 287,
        "signalfd4": 289,
        "eventfd2": 290,
        "epoll_create1": 291,
        "inotify_init1": 294,
        "dup3": 292,
        "pipe2": 293,
        "rt_tgsigqueueinfo": 297,
        "prlimit64": 302,
        "open_by_handle_at": 304,
        "kcmp": 312,
        "sched_setattr": 314,
        "sched_getattr": 315,
        "userfaultfd": 323,
        "membarrier": 324,
        "mlock2": 325,
        "rseq": 334,
        "pidfd_send_signal": 424,
        "pidfd_open": 434,
        "clone3": 435,
        "memfd_create": 319,
        "close_range": 436,
        "pidfd_getfd": 438,
        "epoll_pwait2": 441,
    }
)


def raw(name: str, *arguments: int, pid: int = 0) -> int:
    """Make a system call in this process and give back its result.

    Arguments are passed as 64-bit words; a negative one in two's complement. For
    calls that Python has no function for; pid only says whom an error is about.

    Raises:
        KernelError: the call failed.
    """
    words = [a & (1 << 64) - 1 for a in arguments]
    words += [0] * (6 - len(words))
    result: int = lib.raw_syscall(NUMBERS[name], *words)
    if result < 0:
        raise KernelError(name, Pid(pid), -result)
    return result


def address_of(buffer: bytearray | memoryview) -> int:
    """The address of a writable buffer, for a pointer argument of raw().

    The buffer must outlive the call: keep a name for it.
    """
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def check(result: int, call: str, pid: int) -> int:
    """Give back a count, or raise what -errno stands for.

    Raises:
        KernelError: the C core answered with -errno.
    """
    if result < 0:
        raise KernelError(call, Pid(pid), -result)
    return result


def explain(number: int) -> str:
    """The text for an errno, as strerror(3) has it."""
    return os.strerror(number)
