"""A unix socket without a name, and what lies in it; its other end is inside the tree.

read from   sock_diag(7) (the peer, what is shut down), getsockopt(2), and recvmsg(2)
            with MSG_PEEK, which takes nothing out         unix(7), socket(7)
rebuilt by  socketpair(2), SCM_RIGHTS, setsockopt(2), send(2), shutdown(2)

A socket has one open file description, and cannot be opened again. So both ends are
made with the first one, and stay in our hands until every process has those that are
its own: any of them may come later, or come to another number. What lay in them and
what was shut down is put in place last of all, when nothing more can change.

A pair is made by the process that made it, if that has come by then: the kernel tells
who it was (SO_PEERCRED).
"""

import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Self

from migrate.errors import printable
from migrate.kernel import fd_passing, unix_diag
from migrate.kernel.pidfds import PidFd
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd
from migrate.kernel.unix_diag import UnixSocket as Seen
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """What travels: one socket, told by whoever has it first."""

    socket: int  # its inode at the source
    peer: int | None  # that of its other end; 0: it has closed; None: never had one
    sort: int  # SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET
    nonblocking: bool
    maker: int  # the index in the tree of who made the pair; -1: whoever has it first
    shutdown: int  # 1: it receives no more, 2: it sends no more
    reset: bool  # its peer has closed with something unread, and it has not heard
    numbers: tuple[int | None, ...]  # the values of _NUMBERS; None: not known there
    structures: tuple[bytes, ...]  # the values of _STRUCTURES
    buffers: tuple[int, int]  # SO_SNDBUF and SO_RCVBUF, as they are read
    # What it has not read: of a stream one piece, of others the packets.
    queue: tuple[bytes, ...]


KIND = Kind("unix_socket", 1, Scope.DESCRIPTOR, UnixSocket, exclusive=True)

_PROTOCOL: Final = "UNIX"
_SORTS: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
_PASSCRED: Final = 16
_PEEK_OFF: Final = 42
_GET_FILTER: Final = 26
_SNDBUFFORCE: Final = 32
_RCVBUFFORCE: Final = 33
# asm-generic/socket.h: REUSEADDR, BROADCAST, KEEPALIVE, OOBINLINE, PRIORITY, PASSCRED,
# RCVLOWAT, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, PEEK_OFF, PASSPIDFD, PASSRIGHTS.
_NUMBERS: Final = (2, 6, 9, 10, 12, _PASSCRED, 18, 29, 34, 35, 36, _PEEK_OFF, 76, 83)
_STRUCTURES: Final = (13, 20, 21)  # LINGER, RCVTIMEO, SNDTIMEO
_STRUCTURE_BYTES: Final = 16
_UCRED: Final = struct.Struct("<iII")
_TWO_INTS: Final = struct.Struct("<ii")
_INT: Final = struct.Struct("<i")
_PACKET_BYTES_MAX: Final = 1 << 20
_ONE_PIECE_BYTES: Final = 4096  # so much is in one page at least
_SHUT_BOTH: Final = 3


class _End:
    """A socket in our hands, for one that is restored or for nobody (a peer gone)."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.record: UnixSocket | None = None
        self.mate: _End | None = None

    @classmethod
    def pair(cls, one: socket.socket, other: socket.socket) -> tuple[Self, Self]:
        ends = cls(one), cls(other)
        ends[0].mate, ends[1].mate = ends[1], ends[0]
        return ends

    def fill(self) -> None:
        """Put in what it has not read, through the other end."""
        record, mate = self.record, self.mate
        if record is None or mate is None:
            return
        # Its peer knows better where it has closed since.
        if mate.record is None or mate.record.peer == record.socket:
            _write(record, mate.socket)
        if record.reset and record.peer == 0:
            # Whoever closes with something unread resets the other (unix(7)).
            self.socket.send(b"\0")

    def close(self) -> None:
        """Make it as it was, and let go of it."""
        with self.socket as ours:
            if self.record is not None:
                _set_options(self.record, ours)
                ours.setblocking(not self.record.nonblocking)
                if how := self.record.shutdown & _SHUT_BOTH:
                    # Of a peer that has closed we hear by ourselves.
                    with suppress(OSError):
                        ours.shutdown(how - 1)


def claims(view: FdView) -> bool:
    """Whether it is a socket of this family: the one thing that the view lacks."""
    return stat.S_ISSOCK(view.mode) and unix_diag.protocol(
        view.pid, view.number
    ).startswith(_PROTOCOL)


def refuse(view: FdView) -> str | None:
    """A socket with a name is known to others by it."""
    seen = unix_diag.look(view.inode)
    return None if seen is None else _named(seen)


def other_end(view: FdView) -> str | None:
    """The link of what must be in the tree as well; None: there is no such thing."""
    seen = unix_diag.look(view.inode)
    return f"socket:[{seen.peer}]" if seen and seen.peer else None


def dump(process: Source, view: FdView) -> UnixSocket:
    """Read all of it; what lies in it stays there.

    Raises:
        CannotCarry: its other end is elsewhere, or it holds what is not carried.
    """
    seen = unix_diag.look(view.inode)
    if seen is None:
        raise CannotCarry.at(
            KIND, view, "is a unix socket of another network namespace. Close it."
        )
    if reason := _named(seen):
        raise CannotCarry.at(KIND, view, reason)
    if process.last:
        _check_peer(process, view, seen)
    with _ours(process.pidfd, view.number) as ours:
        return UnixSocket(
            socket=view.inode,
            peer=seen.peer,
            sort=seen.kind,
            nonblocking=bool(view.info.flags & os.O_NONBLOCK),
            maker=_maker(process, ours),
            shutdown=seen.shutdown,
            reset=seen.peer == 0 and _has_error(ours),
            numbers=tuple(_number(ours, option) for option in _NUMBERS),
            structures=tuple(
                ours.getsockopt(socket.SOL_SOCKET, option, _STRUCTURE_BYTES)
                for option in _STRUCTURES
            ),
            buffers=(
                ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
                ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            ),
            queue=_read(view, seen, ours) if process.last else (),
        )


def restore(record: UnixSocket, target: Target) -> RemoteFd:
    """Give it the one that we hold for it."""
    return restore_many([record], target)[0]


def restore_many(records: Sequence[UnixSocket], target: Target) -> list[RemoteFd]:
    """Give it those that we hold for it; the first of a pair makes both."""
    ours = [_held(record, target).socket.fileno() for record in records]
    return fd_passing.give(target.remote, target.pidfd, ours)


def update(old: UnixSocket, new: UnixSocket, target: Target, fd: RemoteFd) -> bool:
    """Remember what is true of it now."""
    if (old.socket, old.sort) != (new.socket, new.sort):
        return False
    _held(new, target)
    return True


def _held(record: UnixSocket, target: Target) -> _End:
    """The socket that is to be this one, in our hands."""
    key = _key(record.socket)
    end = target.joints.get(key)
    if end is None:
        _check_record(record)
        target.joints[key] = end = _make(record, target)
        if end.mate is not None:
            target.joints[_key(record.peer or -record.socket)] = end.mate
    assert isinstance(end, _End)
    end.record = record
    return end


def _key(inode: int) -> tuple[str | int, ...]:
    return (KIND.name, inode)


def _make(record: UnixSocket, target: Target) -> _End:
    if record.peer is None:
        return _End(socket.socket(socket.AF_UNIX, record.sort))
    maker = target
    if 0 <= record.maker < len(target.elders):
        maker = target.elders[record.maker] or target
    remote = maker.remote
    remote.reset()
    numbers = remote.space(_TWO_INTS.size)
    remote.syscall(
        "socketpair", socket.AF_UNIX, record.sort | socket.SOCK_CLOEXEC, 0, numbers
    )
    theirs = _TWO_INTS.unpack(remote.read(numbers, _TWO_INTS.size))
    remote.reset()
    one, other = (socket.socket(fileno=maker.pidfd.getfd(fd)) for fd in theirs)
    batch = remote.batch()
    for fd in theirs:
        batch.add("close", fd)
    batch.run()
    return _End.pair(one, other)[0]


def _check_record(record: UnixSocket) -> None:
    """The peer's word is input."""
    if (
        record.sort not in _SORTS
        or record.socket <= 0
        or (record.peer or 0) < 0
        or record.peer == record.socket
        or len(record.numbers) != len(_NUMBERS)
        or len(record.structures) != len(_STRUCTURES)
    ):
        raise CannotCarry(KIND.name, "The peer sent a unix socket that is none.")


def _named(seen: Seen) -> str | None:
    if seen.name is None and not seen.listening:
        return None
    name = seen.name or b""
    if name.startswith(b"\0"):
        name = b"@" + name[1:]  # an abstract one, as ss(8) shows it
    does = "listens" if seen.listening else "is bound"
    at = printable(os.fsdecode(name.rstrip(b"\0")))
    return (
        f"is a unix socket that {does} at {at}, which other processes may connect "
        "to: it is not carried. Close it, or use a socket pair."
    )


def _check_peer(process: Source, view: FdView, seen: Seen) -> None:
    link = f"socket:[{seen.peer}]"
    tables = process.kin.tables if process.kin else (process.views,)
    if seen.peer and all(other.link != link for table in tables for other in table):
        raise CannotCarry.at(
            KIND,
            view,
            f"is a unix socket ({view.link}) whose other end ({link}) is not in the "
            "tree. Close it, or end the process that it leads to.",
        )


def _maker(process: Source, ours: socket.socket) -> int:
    data = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, _, _ = _UCRED.unpack(data)
    if process.kin is None:
        return -1
    elders = process.kin.tables[: process.kin.index]
    return next((i for i, t in enumerate(elders) if t and t[0].pid == pid), -1)


def _has_error(ours: socket.socket) -> bool:
    poll = select.poll()
    poll.register(ours, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _number(ours: socket.socket, option: int) -> int | None:
    try:
        return ours.getsockopt(socket.SOL_SOCKET, option)
    except OSError:
        return None  # this kernel does not know it


def _read(view: FdView, seen: Seen, ours: socket.socket) -> tuple[bytes, ...]:
    """What has not been read from it; it stays there."""
    if ours.getsockopt(socket.SOL_SOCKET, _GET_FILTER):
        raise CannotCarry.at(
            KIND,
            view,
            "is a unix socket with a filter, which is not carried. Close it.",
        )
    stream = seen.kind == socket.SOCK_STREAM
    mate = unix_diag.look(seen.peer) if seen.peer and not stream else None
    if not seen.queue_bytes and (stream or not (mate and mate.written_bytes)):
        return ()
    if ours.getsockopt(socket.SOL_SOCKET, _PASSCRED):
        raise _unreadable(view, "tells who has sent what lies in it (SO_PASSCRED)")
    with _peeking_from(ours, -1 if stream else 0):
        queue = _read_stream(ours, seen) if stream else _read_packets(ours)
    if queue is None:
        raise _unreadable(view, "holds descriptors on their way")
    if stream:
        whole = sum(map(len, queue)) == seen.queue_bytes
    else:
        # A packet of nothing that somebody has peeked at does not show any more. How
        # much memory a large one takes depends on what was free.
        whole = (
            mate is None
            or any(len(packet) > _ONE_PIECE_BYTES for packet in queue)
            or _memory_of(seen.kind, queue) == mate.written_bytes
        )
    if not whole or b"" in queue:
        what = "data out of band" if stream else "an empty packet"
        raise _unreadable(view, f"holds {what}")
    return queue


def _unreadable(view: FdView, what: str) -> CannotCarry:
    return CannotCarry.at(
        KIND,
        view,
        f"is a unix socket that {what}: that is not carried. Move the process when it "
        "has read the socket.",
    )


@contextmanager
def _peeking_from(ours: socket.socket, offset: int) -> Iterator[None]:
    before = ours.getsockopt(socket.SOL_SOCKET, _PEEK_OFF)
    ours.setsockopt(socket.SOL_SOCKET, _PEEK_OFF, offset)
    try:
        yield
    finally:
        ours.setsockopt(socket.SOL_SOCKET, _PEEK_OFF, before)


def _read_stream(ours: socket.socket, seen: Seen) -> tuple[bytes, ...] | None:
    try:
        data, flags = _peek(ours, seen.queue_bytes)
    except BlockingIOError:
        return ()  # all of it is out of band
    return None if flags & socket.MSG_CTRUNC else (data,)


def _read_packets(ours: socket.socket) -> tuple[bytes, ...] | None:
    """Each peek goes on where the last one ended (socket(7), SO_PEEK_OFF)."""
    packets = []
    with suppress(BlockingIOError):
        while True:
            data, flags = _peek(ours, _PACKET_BYTES_MAX)
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                return None
            packets.append(data)
            if not data:
                break  # a packet of nothing, or the end
    return tuple(packets)


def _peek(ours: socket.socket, size: int) -> tuple[bytes, int]:
    # Without room for them, descriptors stay where they are and are told of by a flag.
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    data, _, said, _ = ours.recvmsg(size, 0, flags)
    return data, said


def _memory_of(sort: int, packets: Sequence[bytes]) -> int:
    """What the kernel counts to a sender of these which nobody has read."""
    one, other = socket.socketpair(socket.AF_UNIX, sort)
    with one, other:
        _enlarge(one)
        one.setblocking(False)
        for packet in packets:
            one.send(packet)
        count = bytearray(_INT.size)
        fcntl.ioctl(one, termios.TIOCOUTQ, count)
        return int(_INT.unpack(count)[0])


def _write(record: UnixSocket, mate: socket.socket) -> None:
    if not record.queue:
        return
    _enlarge(mate)
    mate.setblocking(False)
    try:
        whole = all(mate.send(data) == len(data) for data in record.queue)
    except BlockingIOError:
        whole = False
    if not whole:
        raise CannotCarry(
            KIND.name,
            "A unix socket came with more than it can hold here. Raise "
            "net.core.wmem_max and net.unix.max_dgram_qlen.",
        )


def _enlarge(sender: socket.socket) -> None:
    """Have it hold as much as may be: what lay in it, it held in other pieces."""
    size = 2 * sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    _set_buffer(sender, socket.SO_SNDBUF, _SNDBUFFORCE, size)


def _set_options(record: UnixSocket, ours: socket.socket) -> None:
    for option, number in zip(_NUMBERS, record.numbers, strict=True):
        if number is not None and _number(ours, option) != number:
            _set(ours, option, number)
    for option, data in zip(_STRUCTURES, record.structures, strict=True):
        if ours.getsockopt(socket.SOL_SOCKET, option, _STRUCTURE_BYTES) != data:
            _set(ours, option, data)
    sending, receiving = record.buffers
    _set_buffer(ours, socket.SO_SNDBUF, _SNDBUFFORCE, sending)
    _set_buffer(ours, socket.SO_RCVBUF, _RCVBUFFORCE, receiving)
    found = (
        ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
    )
    if found[0] < sending or found[1] < receiving:
        raise CannotCarry(
            KIND.name,
            f"A unix socket with buffers of {sending} and {receiving} bytes cannot be "
            "made here. Raise net.core.wmem_max and net.core.rmem_max.",
        )


def _set_buffer(ours: socket.socket, option: int, force: int, size: int) -> None:
    """Make it ``size``, as getsockopt(2) tells it: twice what was asked for."""
    if ours.getsockopt(socket.SOL_SOCKET, option) == size:
        return
    try:
        ours.setsockopt(socket.SOL_SOCKET, force, size // 2)
    except PermissionError:
        ours.setsockopt(socket.SOL_SOCKET, option, size // 2)


def _set(ours: socket.socket, option: int, value: int | bytes) -> None:
    try:
        ours.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError as error:
        raise CannotCarry(
            KIND.name,
            f"A unix socket has option {option}, which cannot be set here: "
            f"{error.strerror}.",
        ) from error


@contextmanager
def _ours(pidfd: PidFd, number: int) -> Iterator[socket.socket]:
    """A descriptor of ours for the same socket."""
    with socket.socket(fileno=pidfd.getfd(number)) as ours:
        yield ours
