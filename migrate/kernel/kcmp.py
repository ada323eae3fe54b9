"""kcmp(2): whether two descriptors are one description, two processes one memory.

Both processes must be ours to trace (PTRACE_MODE_READ_REALCREDS).
"""

import struct
from typing import Final

from migrate.kernel.syscalls import address_of, raw
from precopy.ids import Pid

# linux/kcmp.h
_FILE: Final = 0
_VM: Final = 1
_EPOLL_TFD: Final = 7
_EPOLL_SLOT: Final = struct.Struct("<III")  # efd, tfd, toff


def order_files(pid: Pid, fd: int, other_pid: Pid, other_fd: int) -> int:
    """0 if both are one description; else -1 or 1, a total order until reboot.

    Raises:
        KernelError: EBADF if there is no such descriptor, ESRCH, EPERM.
    """
    answer = raw("kcmp", pid, other_pid, _FILE, fd, other_fd, pid=pid)
    # 1 is less, 2 is greater; 3 (unequal, order unknown) is of other architectures.
    return -1 if answer == 1 else answer and 1


def same_memory(pid: Pid, other: Pid) -> bool:
    """Whether two processes have one address space (CLONE_VM).

    Raises:
        KernelError: ESRCH, EPERM.
    """
    return raw("kcmp", pid, other, _VM, 0, 0, pid=pid) == 0


def watches(pid: Pid, epoll: int, target: int, nth: int) -> bool:
    """Whether an epoll set watches what is at descriptor ``target`` now.

    ``nth`` counts, from 0, the registrations made under that number: it may have
    been closed and used again since, while another number kept the file open.

    Raises:
        KernelError: ENOENT if there is no such registration, EBADF if the number
            is not in use.
    """
    slot = bytearray(_EPOLL_SLOT.pack(epoll, target, nth))
    # Of the two descriptors, the first is compared with the one in the slot.
    return raw("kcmp", pid, pid, _EPOLL_TFD, target, address_of(slot), pid=pid) == 0
