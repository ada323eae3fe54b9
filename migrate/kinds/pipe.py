"""pipe(2) or a FIFO, with what lies in it; all ends are inside the tree.

read from   fdinfo (flags), fcntl(F_GETPIPE_SZ), and tee(2) into a pipe of ours, which
            takes nothing out                              pipe(7), tee(2)
rebuilt by  pipe2(2), or openat(2) by the owner; fcntl(F_SETPIPE_SZ), write(2)

An open file description is one end. A pipe may have several of each, or have lost one
side: its reader then sees the end of the file, its writer EPIPE. So both ends are made
with the first description of a pipe, wait parked for theirs, and an end for which no
description comes is closed at last. A process that comes later in the tree gets its
ends opened anew from one that an earlier process has by then.

A FIFO has a name, under which it must be at the destination, with nothing in it.

We look and write through descriptors of our own (pidfd_getfd(2)), and through ends of
our own that /proc/self/fd opens: a side that the process has lost can be used still.
"""

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from migrate.errors import printable
from migrate.kernel import fd_passing
from migrate.kernel.pidfds import PidFd
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import RemoteFd, cstr
from migrate.kernel.syscalls import raw
from migrate.kinds.kind import CannotCarry, Kind, Scope, Source, Target
from precopy.errors import KernelError


@dataclass(frozen=True, slots=True)
class Contents:
    """What belongs to the pipe and not to an end of it."""

    capacity_bytes: int
    packets: bool  # each chunk is a packet of O_DIRECT
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """What travels: one end."""

    pipe: int  # the same for all ends of a pipe; its inode at the source
    path: bytes  # of a FIFO; empty: it has no name
    flags: int  # access mode, O_NONBLOCK, O_DIRECT
    contents: Contents | None  # told once for a pipe: by its lowest descriptor
    # An end of it that a process has which comes before in the tree: index, number.
    elsewhere: tuple[int, int] | None = None


KIND = Kind("pipe", 3, Scope.DESCRIPTOR, Pipe, exclusive=True, leans=True)

_AT_FDCWD: Final = -100
_ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_SETTABLE_FLAGS: Final = os.O_NONBLOCK | os.O_DIRECT
_LINK: Final = "pipe:["
_ANCHOR: Final = -1  # beside the access modes: a number of no end in particular
_READ_BYTES: Final = 1 << 20
_TEE_BYTES_MAX: Final = 1 << 30
_PATH_BYTES_MAX: Final = 4096  # PATH_MAX, with the NUL
_CAPACITY_BYTES_MAX: Final = 1 << 30  # an int in the kernel
_PACKET_BYTES_MAX: Final = 4096  # PIPE_BUF: longer writes are split (pipe(2))
_SPLICE_F_NONBLOCK: Final = 2
_TWO_INTS: Final = struct.Struct("<ii")


def claims(view: FdView) -> bool:
    """Whether it is a pipe, named or not."""
    return stat.S_ISFIFO(view.mode)


def refuse(view: FdView) -> str | None:
    """A FIFO is opened by its name, so it must still have it."""
    if view.link.startswith(_LINK):
        return None
    name = printable(view.link)
    if view.info.flags & os.O_PATH:
        return f"is {name}, opened with O_PATH, which is not carried. Close it."
    try:
        # As the process resolves names: in its mount namespace.
        found = os.stat(os.fsencode(f"/proc/{view.pid}/root{view.link}"))
    except OSError as error:
        return f"is the FIFO {name}, which is not there: {error.strerror}. Close it."
    if (found.st_dev, found.st_ino) != (view.device, view.inode):
        return f"was the FIFO {name} when it was opened: that is another now. Close it."
    return None


def family(record: Pipe) -> Hashable:
    """All ends of a pipe are made anew together."""
    return record.pipe, record.path


def dump(process: Source, view: FdView) -> Pipe:
    """Read the state of an end; the lowest of a pipe's descriptors tells the rest.

    Raises:
        CannotCarry: another process has the other end.
    """
    if reason := refuse(view):
        raise CannotCarry.at(KIND, view, reason)
    ends = [end for end in process.views if _one_pipe(end, view)]
    elsewhere = None
    if process.kin is not None:
        tables = process.kin.tables
        ends = [end for table in tables for end in table if _one_pipe(end, view)]
        elsewhere = next(
            (
                (index, end.number)
                for index, table in enumerate(tables[: process.kin.index])
                for end in table
                if _one_pipe(end, view)
            ),
            None,
        )
    contents = None
    own = [end.number for end in ends if end.pid == view.pid]
    if elsewhere is None and view.number == min(own):
        with _ours(process.pidfd, view.number) as fd:
            if view.link.startswith(_LINK):
                _check_other_side(view, ends, fd)
            else:
                _check_has_begun(view, ends, fd)
            contents = _read_contents(view, ends, fd)
    flags = view.info.flags & (_ACCESS | _SETTABLE_FLAGS)
    path = b"" if view.link.startswith(_LINK) else os.fsencode(view.link)
    return Pipe(view.inode, path, flags, contents, elsewhere)


def restore(record: Pipe, target: Target) -> RemoteFd:
    """Give it the end that waits for it; the first one makes the pipe."""
    access = record.flags & _ACCESS
    if record.elsewhere is not None:
        return _fetch(record, access, target)
    anchor = target.parked.get(_key(record, _ANCHOR))
    if anchor is None:
        anchor = _make(record, target)
    fd = target.parked.pop(_key(record, access), None)
    if fd is None:
        # One more description of a side that has one, or one of both sides.
        path = cstr(f"/proc/self/fd/{anchor}")
        flags = access | os.O_NONBLOCK | os.O_CLOEXEC
        fd = RemoteFd(target.remote.syscall("openat", _AT_FDCWD, path, flags, 0))
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, record.flags & _SETTABLE_FLAGS)
    if record.contents is not None:
        with _ours(target.pidfd, anchor) as ours:
            _write_contents(record.contents, ours)
    return fd


def update(old: Pipe, new: Pipe, target: Target, fd: RemoteFd) -> bool:
    """Fill the same pipe with what is in it now."""
    if family(old) != family(new) or (old.flags ^ new.flags) & _ACCESS:
        return False
    if new.elsewhere is not None:
        index, number = new.elsewhere
        elder = target.elder(index)
        if not os.path.samestat(
            os.stat(f"/proc/{elder.pid}/fd/{number}"),
            os.stat(f"/proc/{target.pid}/fd/{fd}"),
        ):
            return False
    if old.flags != new.flags:
        target.remote.syscall("fcntl", fd, fcntl.F_SETFL, new.flags & _SETTABLE_FLAGS)
    if new.contents is not None and new.contents != old.contents:
        with _ours(target.pidfd, fd) as ours:
            _write_contents(new.contents, ours)
    return True


def _fetch(record: Pipe, access: int, target: Target) -> RemoteFd:
    """An end of a pipe that another process has: another description of it."""
    assert record.elsewhere is not None
    index, number = record.elsewhere
    with _ours(target.elder(index).pidfd, number) as theirs:
        with _reopened(theirs, os.O_RDWR), _reopened(theirs, access) as end:
            (fd,) = fd_passing.give(target.remote, target.pidfd, [end])
    target.remote.syscall("fcntl", fd, fcntl.F_SETFL, record.flags & _SETTABLE_FLAGS)
    return fd


def _key(record: Pipe, end: int) -> tuple[str | int, ...]:
    return (KIND.name, os.fsdecode(record.path), record.pipe, end)


def _one_pipe(end: FdView, other: FdView) -> bool:
    """Whether both are ends of one pipe or FIFO."""
    return (end.device, end.inode) == (other.device, other.inode) and claims(end)


def _make(record: Pipe, target: Target) -> RemoteFd:
    """A new pipe in ``target``, its ends parked; gives back a third number for it."""
    if record.path:
        return _open(record, target)
    remote = target.remote
    numbers = remote.space(_TWO_INTS.size)
    remote.syscall("pipe2", numbers, os.O_CLOEXEC)
    reader, writer = _TWO_INTS.unpack(remote.read(numbers, _TWO_INTS.size))
    remote.reset()
    anchor = remote.syscall("fcntl", reader, fcntl.F_DUPFD_CLOEXEC, 0)
    made = target.park_all([RemoteFd(reader), RemoteFd(writer), RemoteFd(anchor)])
    for end, fd in zip((os.O_RDONLY, os.O_WRONLY, _ANCHOR), made, strict=True):
        target.parked[_key(record, end)] = fd
    return target.parked[_key(record, _ANCHOR)]


def _open(record: Pipe, target: Target) -> RemoteFd:
    """Open a FIFO for both directions, as nobody's end."""
    path = record.path
    if not path.startswith(b"/") or b"\0" in path or len(path) >= _PATH_BYTES_MAX:
        raise CannotCarry(KIND.name, "The peer sent a FIFO without a proper name.")
    name = printable(os.fsdecode(path))
    batch = target.remote.batch()
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    batch.add("openat", _AT_FDCWD, path + b"\0", flags, 0)
    (result,) = batch.run(check=False)
    if result < 0:
        raise CannotCarry(
            KIND.name,
            f"The FIFO {name} cannot be opened: {os.strerror(-result)}. There must be "
            "one under the same name, and the owner must be allowed to open it.",
        )
    anchor = target.park(RemoteFd(result))
    with _ours(target.pidfd, anchor) as ours:
        if not stat.S_ISFIFO(os.fstat(ours).st_mode):
            raise CannotCarry(KIND.name, f"{name} is not a FIFO here.")
        waiting = bytearray(4)
        fcntl.ioctl(ours, termios.FIONREAD, waiting)
    if any(waiting):
        raise CannotCarry(
            KIND.name,
            f"The FIFO {name} has something in it here: somebody uses it. Let them "
            "read it first.",
        )
    target.parked[_key(record, _ANCHOR)] = anchor
    return anchor


def _check_has_begun(view: FdView, ends: Sequence[FdView], fd: int) -> None:
    """A reader of a FIFO that no writer has come to yet would hear of an end."""
    if any(end.info.flags & _ACCESS != os.O_RDONLY for end in ends):
        return
    poll = select.poll()
    poll.register(fd, 0)
    if not any(events & select.POLLHUP for _, events in poll.poll(0)):
        raise CannotCarry.at(
            KIND,
            view,
            f"is the FIFO {printable(view.link)}, which nobody has written to yet: "
            "that is not carried. Open it for writing, too.",
        )


def _check_other_side(view: FdView, ends: Sequence[FdView], fd: int) -> None:
    """Where all ends in the process are of one side, nobody else has the other.

    Somebody who has an end of each side's is found by whoever looks for exclusive
    kinds (migrate.strangers).
    """
    sides = {end.info.flags & _ACCESS for end in ends}
    if len(sides) > 1 or os.O_RDWR in sides:
        return
    (side,) = sides
    poll = select.poll()
    poll.register(fd, 0)
    # The reader of a pipe that nobody writes has POLLHUP, its writer POLLERR
    # (poll(2)).
    gone = select.POLLHUP if side == os.O_RDONLY else select.POLLERR
    if not any(events & gone for _, events in poll.poll(0)):
        other = "writes to" if side == os.O_RDONLY else "reads from"
        raise CannotCarry.at(
            KIND,
            view,
            f"is a pipe ({view.link}) that another process {other}. Close it, or "
            "start the program with files in place of its pipes.",
        )


def _read_contents(view: FdView, ends: Sequence[FdView], fd: int) -> Contents:
    """What lies in the pipe; it stays there."""
    capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    with _reopened(fd, os.O_RDONLY) as reader, _scratch_pipe(capacity) as scratch:
        copy, into = scratch
        try:
            # Buffers are copied by reference, with their packet marks; there is room
            # for all, since the copy has as many slots.
            copied = raw("tee", reader, into, _TEE_BYTES_MAX, _SPLICE_F_NONBLOCK)
        except KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
            copied = 0  # it is empty
        chunks = []
        while copied:
            chunks.append(os.read(copy, capacity))
            copied -= len(chunks[-1])
    # A read of a packet ends where it ends; a stream is read in one go.
    packet_mode = any(
        end.info.flags & os.O_DIRECT and end.info.flags & _ACCESS != os.O_RDONLY
        for end in ends
    )
    packets = packet_mode or len(chunks) > 1
    if packets and any(len(chunk) > _PACKET_BYTES_MAX for chunk in chunks):
        raise CannotCarry.at(
            KIND,
            view,
            "is a pipe that holds packets (O_DIRECT) behind a stream of bytes, which "
            "is not carried. Move the process when it has read the pipe.",
        )
    return Contents(capacity, packets, tuple(chunks))


def _write_contents(contents: Contents, fd: int) -> None:
    """Make the pipe behind our ``fd`` hold this and nothing else."""
    with _reopened(fd, os.O_RDONLY) as reader, contextlib.suppress(BlockingIOError):
        while os.read(reader, _READ_BYTES):
            pass
    _set_capacity(fd, contents.capacity_bytes)
    with _reopened(fd, os.O_RDWR) as writer:
        if contents.packets:
            # open(2) refuses O_DIRECT of a pipe, fcntl(2) does not (fs/fcntl.c).
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_DIRECT | os.O_NONBLOCK)
        for chunk in contents.chunks:
            try:
                written = os.write(writer, chunk)
            except BlockingIOError:
                written = 0
            if written != len(chunk):
                raise CannotCarry(KIND.name, "A pipe came with more than it can hold.")


def _set_capacity(fd: int, capacity_bytes: int) -> None:
    if not 0 < capacity_bytes <= _CAPACITY_BYTES_MAX:
        raise CannotCarry(
            KIND.name, f"A pipe came with {capacity_bytes} bytes of room."
        )
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, capacity_bytes)
    except OSError as error:
        raise CannotCarry(
            KIND.name,
            f"A pipe of {capacity_bytes} bytes cannot be made: {error.strerror}. Raise "
            "fs.pipe-max-size and fs.pipe-user-pages-soft.",
        ) from error


@contextlib.contextmanager
def _ours(pidfd: PidFd, number: int) -> Iterator[int]:
    """A descriptor of ours for the same open file description."""
    fd = pidfd.getfd(number)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _reopened(fd: int, flags: int) -> Iterator[int]:
    """An end of our own of the pipe behind our ``fd``, which never blocks."""
    # A pipe without a name opens at once, whoever is at the other end (fs/pipe.c,
    # fifo_open). Of a FIFO, an end to write needs somebody who reads.
    end = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield end
    finally:
        os.close(end)


@contextlib.contextmanager
def _scratch_pipe(capacity_bytes: int) -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _set_capacity(writer, capacity_bytes)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)
