"""Open files of ours, given to a stopped process whoever its owner is.

described   unix(7), SCM_RIGHTS

The process makes a pair of sockets; one end we take out of it (pidfd_getfd(2)) and
send through it, the other one it reads. So nothing has a name that others could see.
"""

import array
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from migrate.kernel.pidfds import PidFd
from migrate.kernel.remote import Remote, RemoteFd

_AT_ONCE: Final = 64
_MSG_CMSG_CLOEXEC: Final = 0x40000000
_MSGHDR: Final = struct.Struct("<QI4xQQQQi4x")  # name, iovec, control; their sizes
_IOVEC: Final = struct.Struct("<QQ")
_CMSGHDR: Final = struct.Struct("<Qii")
_TWO_INTS: Final = struct.Struct("<ii")


def give(remote: Remote, pidfd: PidFd, fds: Sequence[int]) -> list[RemoteFd]:
    """The numbers that these have in the process, whose table is all its own.

    They are its lowest free ones, with FD_CLOEXEC set. ``fds`` stay ours.
    """
    given: list[RemoteFd] = []
    for start in range(0, len(fds), _AT_ONCE):
        given += _give(remote, pidfd, fds[start : start + _AT_ONCE])
    return given


def _give(remote: Remote, pidfd: PidFd, fds: Sequence[int]) -> list[RemoteFd]:
    remote.reset()
    pair = remote.space(_TWO_INTS.size)
    kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
    remote.syscall("socketpair", socket.AF_UNIX, kind, 0, pair)
    theirs, ours = _TWO_INTS.unpack(remote.read(pair, _TWO_INTS.size))
    with socket.socket(fileno=pidfd.getfd(ours)) as end:
        rights = array.array("i", fds).tobytes()
        end.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    control_bytes = _CMSGHDR.size + -(-len(rights) // 8) * 8
    byte, control = remote.space(8), remote.space(control_bytes)
    vector = remote.space(_IOVEC.size)
    remote.write(vector, _IOVEC.pack(byte, 1))
    message = _MSGHDR.pack(0, 0, vector, 1, control, control_bytes, 0)
    batch = remote.batch()
    batch.add("recvmsg", theirs, message, _MSG_CMSG_CLOEXEC)
    batch.add("close", theirs)
    batch.add("close", ours)
    batch.run()
    data = remote.read(control, _CMSGHDR.size + len(rights))
    remote.reset()
    size, level, what = _CMSGHDR.unpack_from(data)
    if (size, level, what) != (len(data), socket.SOL_SOCKET, socket.SCM_RIGHTS):
        # Fewer came than were sent: there was no room in its table (recvmsg(2)).
        raise OSError(os.EX_TEMPFAIL, "descriptors were lost on their way")
    return [RemoteFd(n) for n in array.array("i", data[_CMSGHDR.size :])]
