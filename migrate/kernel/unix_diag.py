"""What the kernel tells of a unix socket: who is at its other end, what lies in it.

described   sock_diag(7); linux/unix_diag.h

Sockets are known by inode, in the network namespace of the caller.
"""

import errno
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from precopy.errors import KernelError
from precopy.ids import Pid

_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_NETLINK_SOCK_DIAG: Final = 4
_ANY: Final = 0xFFFFFFFF  # state and cookie
_SHOW: Final = 0x01 | 0x04 | 0x10 | 0x20  # UDIAG_SHOW_NAME, PEER, RQLEN, MEMINFO
# enum in linux/unix_diag.h
_NAME: Final = 0
_PEER: Final = 2
_QUEUE: Final = 4
_MEMORY: Final = 5
_SHUTDOWN: Final = 6
_HEADER: Final = struct.Struct("<IHHII")  # struct nlmsghdr
_REQUEST: Final = struct.Struct("<BBHIIIII")  # struct unix_diag_req
_ANSWER: Final = struct.Struct("<BBBxIII")  # struct unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("<HH")
_WRITTEN: Final = struct.Struct("<8xI")  # SK_MEMINFO_WMEM_ALLOC of linux/sock_diag.h
_LISTENING: Final = 10  # TCP_LISTEN: unix sockets have the states of TCP
_ANSWER_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One socket, at one moment."""

    inode: int
    kind: int  # SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
    listening: bool
    name: bytes | None  # a path, or after a NUL an abstract name; None: it is not bound
    peer: int | None  # inode; 0: it has closed, or nobody accepted; None: never had one
    queue_bytes: int  # what read(2) could get; of datagrams the first one only
    written_bytes: int  # memory of what it sent and nobody has read
    shutdown: int  # 1: it receives no more, 2: it sends no more


def look(inode: int) -> UnixSocket | None:
    """The socket with this inode; None if there is none here.

    Raises:
        KernelError: the kernel does not tell (CONFIG_UNIX_DIAG).
    """
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _SHOW, _ANY, _ANY)
    size = _HEADER.size + len(request)
    header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as asking:
        asking.send(header + request)
        answer = asking.recv(_ANSWER_BYTES_MAX)
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _NLMSG_ERROR:
        (number,) = struct.unpack_from("<i", answer, _HEADER.size)
        if -number == errno.ENOENT:
            return None
        raise KernelError("sock_diag", Pid(0), -number)
    return _parsed(answer[_HEADER.size : length])


def protocol(pid: Pid, number: int) -> str:
    """The name of the protocol of a socket, as "UNIX-STREAM" or "TCP"; "": it is gone.

    sockfs tells it as an extended attribute (net/socket.c, sockfs_xattr_get).
    """
    try:
        name = os.getxattr(f"/proc/{pid}/fd/{number}", "system.sockprotoname")
    except OSError:
        return ""
    return name.rstrip(b"\0").decode("ascii", "replace")


def _parsed(body: bytes) -> UnixSocket:
    _, kind, state, inode, _, _ = _ANSWER.unpack_from(body)
    found: dict[int, bytes] = {}
    at = _ANSWER.size
    while at + _ATTRIBUTE.size <= len(body):
        size, attribute = _ATTRIBUTE.unpack_from(body, at)
        found[attribute] = body[at + _ATTRIBUTE.size : at + size]
        at += -(-max(size, _ATTRIBUTE.size) // 4) * 4
    written = found.get(_MEMORY)
    return UnixSocket(
        inode=inode,
        kind=kind,
        listening=state == _LISTENING,
        name=found.get(_NAME),
        peer=_number(found, _PEER),
        queue_bytes=_number(found, _QUEUE) or 0,
        written_bytes=_WRITTEN.unpack_from(written)[0] if written else 0,
        shutdown=found.get(_SHUTDOWN, b"\0")[0],
    )


def _number(found: Mapping[int, bytes], attribute: int) -> int | None:
    """The first four bytes of an attribute; None if it was not told."""
    data = found.get(attribute)
    return int.from_bytes(data[:4], "little") if data else None
