"""The processes of a tree that leaves, as they come and go.

Each has its own tracker, brake and memory. Between rounds whoever was born is looked at
and told to the destination (`Joined`), and so is whoever executes another program:
that one is new from its memory on, and keeps its place. In the freeze the same is done
once more, and then the tree is what it is.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from migrate import dump, image, kin, preflight, tracking
from migrate.brake import Brake, Brakes
from migrate.freeze import Frozen
from migrate.image import Ended, Index, Joined, Outline, Process
from migrate.kernel import lineage, procfs
from migrate.kernel.kcmp import same_memory
from migrate.kernel.lineage import Relative
from migrate.kernel.pidfds import PidFd
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import Remote
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from migrate.kinds.kind import CannotCarry, Kin, Source
from migrate.options import TrackerChoice
from migrate.outgoing_memory import OutgoingMemory
from migrate.outgoing_object import OutgoingObject, index_of
from migrate.shared_objects import SharedObjects
from precopy.address_space import AddressSpace
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid, Tid
from precopy.task_memory import TaskMemory
from precopy.tracker import DirtyTracker
from transport import messages as m
from transport.channel import Channel

_ROOT: Final = Index(0)
_SETTLED_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Standing:
    """A process in the freeze: it is looked at as it stands there."""

    tracee: Tracee
    remote: Remote
    mapped: dump.Mapped


@dataclass(slots=True)
class Member:
    """One process of the tree; what it holds goes back when ``undo`` is closed."""

    index: Index
    pid: Pid
    undo: ExitStack
    pidfd: PidFd
    sleepers: Sleepers
    brake: Brake
    process: Process
    tracker: DirtyTracker
    memory: OutgoingMemory
    contents: TaskMemory
    known: dump.Memory = field(default_factory=dump.Memory)

    def source(
        self,
        tracee: Tracee,
        remote: Remote,
        views: tuple[FdView, ...],
        relatives: Kin | None,
        objects: SharedObjects,
    ) -> Source:
        """What kinds are dumped from."""
        return Source(self.pid, tracee, remote, self.pidfd, views, relatives, objects)

    def is_itself(self) -> bool:
        """Whether it lives, and runs the program that it ran when it was looked at."""
        if self.pidfd.has_ended():
            return False
        block = next((v for v in self.process.vmas if v.name == "[vdso]"), None)
        if block is None:
            return True
        try:
            # A memory that execve(2) has replaced reads as empty (fs/proc/base.c).
            self.contents.read(block.start, 1)
        except TaskVanished:
            return False
        return True


class DepartingTree:
    """All members, by their index. ``undo`` gives back what was done to them."""

    def __init__(
        self, root: Pid, choice: TrackerChoice, channel: Channel, undo: ExitStack
    ) -> None:
        self._root_pid = root
        self._choice = choice
        self._channel = channel
        self._undo = undo
        self._members: list[Member | None] = []
        self._lost: set[Index] = set()  # vanished from under us; why is not known yet
        self.brakes = Brakes()
        self._shared = SharedObjects(channel)
        self._undo.callback(self._shared.close)
        self._objects: dict[Index, OutgoingObject] = {}

    @property
    def root(self) -> Member:
        """The process that was named."""
        root = self._members[0]
        assert root is not None
        return root

    @property
    def members(self) -> list[Member]:
        """All that live, parents before their children."""
        return [member for member in self._members if member is not None]

    def look(self) -> Outline:
        """Look at all for the first time, and begin to track their writes.

        Raises:
            CannotCarry: one cannot go.
            TaskVanished: the root ended.
        """
        relatives = [
            relative
            for relative in lineage.family(self._root_pid)
            if relative.pid == self._root_pid or not _borrows_memory(relative)
        ]
        while len(self._members) < len(relatives):
            tables = [_table(relative.pid) for relative in relatives]
            kin_of = kin.of_tree(tables)
            try:
                for relative in relatives[len(self._members) :]:
                    index = Index(len(self._members))
                    self._take_in(relative, index, kin_of[index])
            except TaskVanished:
                if not self._members:
                    raise
                del relatives[len(self._members)]
        processes = tuple(member.process for member in self.members)
        return Outline(processes, self._shared.untold())

    def follow(self) -> None:
        """Find who has come, who has gone, and who runs another program."""
        self._forget_ended()
        anew, self._lost = sorted(self._lost), set()
        self._join_all(
            [self._in_new_life(index) for index in anew if self._members[index]],
            None,
        )
        self._join_all(
            [
                relative
                for relative in lineage.family(self._root_pid)
                if not self._knows(relative.pid)
                and not _borrows_memory(relative)
                and _is_settled(relative.pid)
            ],
            None,
        )

    def settle(self, frozen: Frozen) -> None:
        """The same for the last time: nothing runs.

        Raises:
            TaskVanished: the root ended.
        """
        if self._root_pid not in frozen.tracees:
            raise TaskVanished(self._root_pid)
        for member in self.members:
            if member.pid not in frozen.tracees or not member.is_itself():
                self.lost(member.index)
        if not self._lost and len(frozen.tracees) == len(self.members):
            return
        self._forget_ended()
        anew, self._lost = sorted(self._lost), set()
        self._join_all(
            [self._in_new_life(index) for index in anew if self._members[index]]
            + [r for r in self._relatives(frozen) if not self._knows(r.pid)],
            frozen,
        )

    def memories(self) -> dict[Index, OutgoingMemory]:
        """Of all that live."""
        return {
            member.index: member.memory
            for member in self.members
            if member.index not in self._lost
        }

    def objects(self) -> dict[Index, OutgoingObject]:
        """What they share; the destination knows of all of it."""
        self._shared.look()
        for number in range(len(self._objects), len(self._shared)):
            self._objects[index_of(number)] = OutgoingObject(self._shared, number)
        return self._objects

    def tell_objects(self) -> None:
        """Tell the destination of what they have come to share."""
        self._shared.tell()

    def leave_objects(self) -> None:
        """They are at home elsewhere: take their names away."""
        self._shared.leave()

    def lost(self, index: Index) -> None:
        """This one has ended, or executed another program.

        Raises:
            TaskVanished: it is the root.
        """
        member = self._members[index]
        if member is not None and index == _ROOT:
            raise TaskVanished(member.pid)
        self._lost.add(index)

    def sources(
        self, frozen: Frozen, remotes: Mapping[Pid, Remote]
    ) -> Iterator[tuple[Member | None, Source | None]]:
        """What to dump each member from, by index; none for one that has ended."""
        tables = [_table(mem.pid) if mem else () for mem in self._members]
        for member, views, own in zip(
            self._members, tables, kin.of_tree(tables), strict=True
        ):
            if member is None:
                yield None, None
                continue
            tracee, remote = frozen.tracees[member.pid], remotes[member.pid]
            yield member, member.source(tracee, remote, views, own, self._shared)

    def ended(self) -> tuple[Ended, ...]:
        """Those of the tree that have ended and were not waited for."""
        return tuple(
            Ended(
                pid=stat.pid,
                parent=member.index,
                process_group=stat.process_group,
                session=stat.session,
                comm=stat.name,
                status=stat.exit_status,
                exit_signal=stat.exit_signal,
            )
            for member in self.members
            for stat in lineage.ended_children(member.pid)
        )

    def _relatives(self, frozen: Frozen) -> list[Relative]:
        """All that are frozen; last those whose parent has ended meanwhile."""
        found = lineage.family(self._root_pid)
        inside = {relative.pid for relative in found}
        for pid in frozen.tracees:
            if pid not in inside:
                found += lineage.family(pid)
        return [relative for relative in found if relative.pid in frozen.tracees]

    def _forget_ended(self) -> None:
        for member in self.members:
            if member.pidfd.has_ended():
                self.lost(member.index)
                self._lost.discard(member.index)
                self.brakes.drop(member.pid)
                member.undo.close()
                self._members[member.index] = None

    def _in_new_life(self, index: Index) -> Relative:
        """One that has executed another program: all that we hold of it is void."""
        member = self._members[index]
        assert member is not None
        parent = procfs.stat(member.pid).parent
        self.brakes.drop(member.pid)
        member.undo.close()
        bearer = member.process.bearer or parent
        return Relative(member.pid, parent, Tid(bearer), index)

    def _join_all(self, relatives: Sequence[Relative], frozen: Frozen | None) -> None:
        """Look at these, and tell the destination of them."""
        if not relatives:
            return
        # Before anything is injected: it would be seen.
        mapped = {}
        for relative in relatives:
            self._require_carried(relative.pid, frozen)
            if frozen is not None:
                mapped[relative.pid] = dump.Mapped.of(relative.pid, self._shared)
        with ExitStack() as injecting:
            remotes = injecting.enter_context(frozen.injecting()) if frozen else {}
            for place, relative in enumerate(relatives):
                # Nothing is told of one that has ended already.
                with suppress(TaskVanished):
                    self._join(
                        relative,
                        self._kin(relative, relatives[place + 1 :]),
                        None
                        if frozen is None
                        else _Standing(
                            frozen.tracees[relative.pid],
                            remotes[relative.pid],
                            mapped[relative.pid],
                        ),
                    )

    def _require_carried(self, pid: Pid, frozen: Frozen | None) -> None:
        family = {member.pid for member in self.members} | {pid}
        family |= (
            set(frozen.tracees)
            if frozen
            else {relative.pid for relative in lineage.family(self._root_pid)}
        )
        for reason in preflight.of_member(pid, family):
            raise CannotCarry(reason.kind, reason.message, pid=reason.pid, fd=reason.fd)

    def _kin(self, relative: Relative, later: Sequence[Relative]) -> Kin | None:
        index = self._index(relative)
        tables = [_table(mem.pid) if mem else () for mem in self._members]
        tables[index : index + 1] = [_table(relative.pid)]
        return kin.of_tree([*tables, *(_table(one.pid) for one in later)])[index]

    def _index(self, relative: Relative) -> Index:
        index = len(self._members) if relative.index < 0 else relative.index
        return Index(index)

    def _join(
        self, relative: Relative, own_kin: Kin | None, standing: "_Standing | None"
    ) -> None:
        index = self._index(relative)
        member = self._take_in(relative, index, own_kin, standing)
        self._shared.tell()
        joined = image.encode(Joined(index, member.process))
        self._channel.send(m.Layout(image.JOINS, joined))

    def _take_in(
        self,
        relative: Relative,
        index: Index,
        own_kin: Kin | None,
        standing: "_Standing | None" = None,
    ) -> Member:
        """One short stop, unless it stands still: what is it made of? Track it."""
        pid = relative.pid
        known = dump.Memory()
        with ExitStack() as undo:
            pidfd = undo.enter_context(PidFd.open(pid))
            sleepers = Sleepers(pid)
            brake = undo.enter_context(Brake(pid, sleepers))
            contents = undo.enter_context(TaskMemory(pid))
            # What can be seen of a running process is looked at before the stop.
            mapped = standing.mapped if standing else dump.Mapped.of(pid, self._shared)
            with ExitStack() as stopped:
                if standing:
                    tracee, remote = standing.tracee, standing.remote
                else:
                    tracee = stopped.enter_context(brake.holding())
                    remote = stopped.enter_context(tracee.remote())
                views = procfs.fds(pid)
                source = Source(pid, tracee, remote, pidfd, views, own_kin, last=False)
                source.objects = self._shared
                look = dump.look(source, known)
                # What stands still is looked at once.
                choice = TrackerChoice.EVERYTHING if standing else self._choice
                tracker = tracking.tracker(choice, source, brake.holding)
            undo.callback(tracker.close)
            process = self._placed(dump.outline(look, mapped, known), relative)
            space = AddressSpace(process.vmas)
            member = Member(
                index=index,
                pid=pid,
                pidfd=pidfd,
                sleepers=sleepers,
                brake=brake,
                process=process,
                tracker=tracker,
                memory=OutgoingMemory(
                    index, contents, tracker, space, self._shared, self._channel
                ),
                contents=contents,
                known=known,
                undo=undo.pop_all(),
            )
        self._undo.callback(member.undo.close)
        if index == len(self._members):
            self._members.append(None)
        self._members[index] = member
        self.brakes.add(pid, brake)
        return member

    def _placed(self, process: Process, relative: Relative) -> Process:
        """With its place in the tree."""
        if relative.pid == self._root_pid:
            return process
        parent = next((x for x in self.members if x.pid == relative.parent), None)
        return replace(
            process,
            parent=parent.index if parent else -1,
            bearer=procfs.own_id(parent.pid, relative.bearer) if parent else 0,
            exit_signal=procfs.stat(relative.pid).exit_signal,
        )

    def _knows(self, pid: Pid) -> bool:
        return any(member.pid == pid for member in self.members)


def _table(pid: Pid) -> tuple[FdView, ...]:
    try:
        return procfs.fds(pid)
    except TaskVanished:
        return ()


def _is_settled(pid: Pid) -> bool:
    """Whether it has lived for a while: many a child is gone before it is built."""
    try:
        born_s = procfs.stat(pid).start_time_ticks / os.sysconf("SC_CLK_TCK")
    except TaskVanished:
        return False
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s >= _SETTLED_S


def _borrows_memory(relative: Relative) -> bool:
    """Whether it is about to execute a program, and its parent waits in vfork(2)."""
    try:
        return same_memory(relative.pid, relative.parent)
    except KernelError:
        return False  # it has ended
