"""What a kind says of itself, and what it is handed to work with.

A kind is one module beside this one: everything about one sort of thing that a
process holds, with the frozen record that travels between dump and restore.

A record is a frozen, slotted dataclass of plain fields (int, bool, str, bytes,
tuples, other such dataclasses). It crosses the wire as msgpack and is decoded
strictly. Paths are bytes: the kernel's names need not be UTF-8.

Each kind is dumped twice, before the freeze and in it. What was dumped first is
restored while the source still runs; in the frozen section only what differs is
restored again. Late kinds are dumped and restored in the frozen section only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, cast

from migrate.kernel import posix_timers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from migrate.kernel.pidfds import PidFd
    from migrate.kernel.posix_timers import TimersNow
    from migrate.kernel.procfs import FdView
    from migrate.kernel.remote import Remote, RemoteFd
    from migrate.kernel.tracee import Tracee
    from precopy.ids import Pid, Tid
    from precopy.task_memory import TaskMemory

# Whatever class the kind names as its record.
Record: TypeAlias = Any


class Scope(Enum):
    """Whose property a kind carries."""

    DESCRIPTOR = auto()
    PROCESS = auto()
    TASK = auto()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind's name (that of its module), the version of its record, and its place."""

    name: str
    version: int
    scope: Scope
    record: type
    after: tuple[str, ...] = ()  # kinds of the same scope that are restored first
    late: bool = False  # dumped and restored in the frozen section only
    exclusive: bool = False  # a descriptor: refused if another process holds it too
    in_view: bool = False  # a descriptor: equal views of it have equal records
    # A descriptor: what it is depends on that of another process, so that an equal
    # record may have to be restored anew.
    leans: bool = False
    in_answers: bool = False  # it has an `ask`: equal answers to it are equal records


class CannotCarry(Exception):
    """A kind found something that it cannot dump or cannot restore.

    ``message`` is the whole sentence: what it is, and the way out.
    """

    def __init__(
        self, kind: str, message: str, *, pid: int | None = None, fd: int | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.pid = pid
        self.fd = fd

    @classmethod
    def at(cls, kind: Kind, view: FdView, reason: str) -> Self:
        """It is the descriptor ``view``; ``reason`` goes on after its name."""
        sentence = f"fd {view.number} of pid {view.pid} {reason}"
        return cls(kind.name, sentence, pid=view.pid, fd=view.number)


@dataclass(frozen=True, slots=True)
class Kin:
    """The descriptors of a whole tree, as one of its processes needs to know them."""

    index: int  # its own
    tables: tuple[tuple[FdView, ...], ...]  # by index; empty where one has ended
    # By number: who comes before it and has the same description, and as what.
    inherited: Mapping[int, tuple[int, int]]


class ObjectsHere(Protocol):
    """Memory that has an inode and no name, at the source (migrate.shared_objects)."""

    def number_of(self, view: FdView) -> int:
        """The number of what a descriptor is open on.

        Raises:
            FileNotFoundError: it is not open any more.
        """

    def meet(self, view: FdView) -> int | None:
        """The same; None if it is a file that has a name.

        Raises:
            FileNotFoundError: it is not open any more.
        """


class ObjectsThere(Protocol):
    """The same at the destination (migrate.arriving_objects)."""

    def give(self, remote: Remote, wanted: Sequence[tuple[int, int]]) -> list[RemoteFd]:
        """Objects by number, opened anew with these flags; FD_CLOEXEC is set.

        Raises:
            CannotCarry: there is no such object.
        """


@dataclass(slots=True)
class Source:
    """A process being dumped: all its threads are stopped.

    ``remote`` is the leader's; ``remote.on(tid)`` is another thread's.
    ``views`` is the descriptor table as /proc shows it now.
    """

    pid: Pid
    tracee: Tracee
    remote: Remote
    pidfd: PidFd
    views: tuple[FdView, ...] = ()
    kin: Kin | None = None  # None: it is alone
    objects: ObjectsHere | None = None
    last: bool = True  # the look that counts: nothing of the tree runs
    _timers: TimersNow | None = field(default=None, init=False)

    @property
    def timers(self) -> TimersNow:
        """The timers of timer_create(2) and their signals, as of the first look."""
        if self._timers is None:
            self._timers = posix_timers.look(self.pid, self.tracee, self.remote)
        return self._timers


class Joint(Protocol):
    """An end of what joins processes, in our hands until each has those of its own."""

    def fill(self) -> None:
        """Put in what lay in it."""

    def close(self) -> None:
        """Make it as shut as it was, and let go of it."""


def settle(joints: dict[tuple[str | int, ...], Joint]) -> None:
    """Finish what joins the processes of a tree: nothing more will be told of it.

    Raises:
        CannotCarry: it cannot be made as it was.
    """
    for joint in joints.values():
        joint.fill()
    while joints:
        joints.popitem()[1].close()


@dataclass(slots=True)
class Target:
    """A skeleton that is given what a process had: all its threads are stopped.

    ``pid`` is what our pid namespace calls it. ``parked`` is where a kind keeps,
    under a key that begins with its name, what it made for a later record (the
    other end of a pipe); what is left there in the end is closed.
    """

    pid: Pid
    tracee: Tracee
    remote: Remote
    memory: TaskMemory
    pidfd: PidFd
    parking: Parking = field(default_factory=lambda: Parking())
    parked: dict[tuple[str | int, ...], RemoteFd] = field(default_factory=dict)
    # What late kinds have found there, by kind and thread (None: the process's).
    standing: dict[tuple[str, Tid | None], Record] = field(default_factory=dict)
    # What a thread is to be told in the end, if nothing changes until then.
    ready: dict[Tid, Any] = field(default_factory=dict)
    # Numbers that a description lost in this pass while it lives on at others.
    vacated: frozenset[int] = frozenset()
    # Those of the tree that come before it, by index; None where one has ended.
    elders: Sequence[Target | None] = ()
    objects: ObjectsThere | None = None
    # What joins processes of the tree, by a key that begins with its kind's name; one
    # for the whole tree. The last pass is followed by settle().
    joints: dict[tuple[str | int, ...], Joint] = field(default_factory=dict)

    def elder(self, index: int) -> Target:
        """One of them.

        Raises:
            CannotCarry: the peer speaks of one that is not there.
        """
        elder = self.elders[index] if 0 <= index < len(self.elders) else None
        if elder is None or elder is self:
            raise CannotCarry("tree", f"Nothing can come from process {index}.")
        return elder

    def park(self, fd: RemoteFd) -> RemoteFd:
        """The same description at a number that nobody wants; ``fd`` is closed.

        A number that nobody wants already stays where it is.
        """
        return self.park_all([fd])[0]

    def park_all(self, fds: Sequence[RemoteFd]) -> list[RemoteFd]:
        """What park() does, for all that are not parked yet: in one batch.

        A spare number is one that nothing is known to have: so no other descriptor
        may be open that is neither parked nor at a number which somebody wants.
        """
        spares = {fd: fd for fd in fds if self.parking.leave(fd)}
        batch = self.remote.batch()
        for fd in fds:
            if fd not in spares:
                spares[fd] = cast("RemoteFd", self.parking.spare())
                batch.add("dup3", fd, spares[fd], os.O_CLOEXEC)
                batch.add("close", fd)
        batch.run()
        return [spares[fd] for fd in fds]


class Parking:
    """Descriptor numbers of the target that nobody wants in the end.

    A description is opened at whatever number is free, and that may be one which
    another is going to have: until then it waits at a spare number.
    """

    def __init__(self, wanted: Iterable[int] = (), limit: int = 1024) -> None:
        self._wanted = frozenset(wanted)
        self._limit = limit  # RLIMIT_NOFILE: every number is below it
        self._taken: set[int] = set()
        self._next = max(self._wanted, default=-1) + 1

    def leave(self, number: int) -> bool:
        """Count ``number`` as parked where it is, unless somebody wants it."""
        if number in self._wanted:
            return False
        self._taken.add(number)
        return True

    def spare(self) -> int:
        """A number that nobody wants and nobody has; it is taken now.

        Raises:
            CannotCarry: there is none below the limit.
        """
        above = range(self._next, self._limit)
        gaps = range(min(self._next, self._limit))
        for numbers in (above, gaps):
            for number in numbers:
                if number not in self._wanted and number not in self._taken:
                    self._next = max(self._next, number + 1)
                    self._taken.add(number)
                    return number
        raise CannotCarry(
            "descriptors",
            f"All {self._limit} descriptor numbers are in use, and one more is needed "
            "to rebuild the table. Close a descriptor or raise RLIMIT_NOFILE.",
        )


class DescriptorKind(Protocol):
    """What a module offers whose kind is a file descriptor's."""

    KIND: Kind

    def claims(self, view: FdView) -> bool:
        """Whether this descriptor is of this kind; asks for little but the view."""

    def refuse(self, view: FdView) -> str | None:
        """Why this one cannot go; None if it can. Reads /proc only.

        It is the rest of a sentence that begins "fd 17 of pid 4711 ", and a second
        one with the way out: "is an io_uring, which cannot be carried. Close it."
        """

    def dump(self, process: Source, view: FdView) -> Record:
        """The record of one open file description, seen through one of its numbers."""

    def restore(self, record: Record, target: Target) -> RemoteFd:
        """Rebuild it at any number, which the caller then owns; FD_CLOEXEC is set."""

    def update(self, old: Record, new: Record, target: Target, fd: RemoteFd) -> bool:
        """Turn what ``old`` restored at ``fd`` into ``new``; False: restore it anew.

        False leaves ``fd`` as it was.
        """

    # Four more, which a module may leave out:
    #   other_end(view) -> str | None
    # is the link of what must be open in the tree as well. It reads what is asked of
    # the kernel without the process noticing.
    #   family(record) -> Hashable
    # Records of one family (the two ends of a pipe) are restored anew together.
    #   restore_many(records, target) -> list[RemoteFd]
    # does for many what restore does for one.
    #   finish(record, target, fd: RemoteFd) -> None
    # is called after each pass, when every number is what it will be: for a kind
    # that refers to other descriptors by number.


class ProcessKind(Protocol):
    """What a module offers whose kind is a process's."""

    KIND: Kind

    def refuse(self, pid: Pid) -> list[str]:
        """Every reason why it cannot go, as sentences. Reads /proc only."""

    def dump(self, source: Source) -> Record:
        """The record; None if there is nothing to carry."""

    def restore(self, record: Record, target: Target) -> None:
        """Rebuild it; may be called again with a newer record."""

    # Three more, which a module of a process's or a task's kind may leave out:
    #   ask(form, batch) -> Reader
    # does what dump() does, together with other kinds (migrate.kernel.asking). When its
    # reader raises Unsaid, dump() has to be called.
    #   must_look(source) -> bool
    # says that this time no answer is to be trusted, and dump() has to be called.
    #   tell(record, there, remote, batch) -> Check
    # does what restore() does, together with others (migrate.kernel.telling). `there`
    # is what dump() says of the target, for a late kind; None for all others.


class TaskKind(Protocol):
    """What a module offers whose kind is a task's."""

    KIND: Kind

    def refuse(self, pid: Pid) -> list[str]:
        """Every reason why a task of the process cannot go. Reads /proc only."""

    def dump(self, source: Source, tid: Tid) -> Record:
        """The record; None if there is nothing to carry."""

    def restore(self, record: Record, target: Target, tid: Tid) -> None:
        """Rebuild it; may be called again with a newer record."""
