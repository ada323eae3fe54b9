"""The skeletons of a tree: each the child of its parent, in its session and group.

The root is born by us (`Skeleton.build`). All others are born by a skeleton, in a call
that it makes for us: so they are its children, in the order of their births, in its
session and group, its cgroup and its pid namespace.

A session is inherited, or begun by its leader. A child that is in another session than
its parent was left to it by one that has ended (a subreaper gets such), and comes to
it the same way: somebody of that session, or a leader made for the moment, bears one
that bears it, and ends (`_bear_aside`). Groups are easier: whoever is in the session
can join one, if need be after a leader made for the moment has begun it.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from migrate.arriving_objects import ArrivingObjects
from migrate.image import Ended, Joined, Process
from migrate.kernel import offspring, procfs
from migrate.kernel.offspring import Offspring
from migrate.kernel.remote import Remote, RemoteError
from migrate.kernel.syscalls import explain
from migrate.mapping import CannotBuild
from migrate.skeleton import Skeleton, destroy_all
from precopy.errors import TaskVanished
from transport.messages import PidPolicy

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
# Signals whose default is a core dump, for which all that share a memory end.
_DUMPING: Final = frozenset({3, 4, 5, 6, 7, 8, 11, 24, 25, 31})


class SkeletonTree:
    """Skeletons by their index; None where a process has ended.

    ``objects`` is what they share.
    """

    def __init__(self) -> None:
        self.skeletons: list[Skeleton | None] = []
        self.objects = ArrivingObjects()

    @property
    def root(self) -> Skeleton:
        """The first, without which there is no tree."""
        root = self.skeletons[0]
        assert root is not None
        return root

    @property
    def living(self) -> list[Skeleton]:
        """All that have not ended, parents before children as they were born."""
        return [s for s in self.skeletons if s is not None]

    def build(self, processes: Sequence[Process], leaf: int, policy: PidPolicy) -> None:
        """Bear all in the cgroup that ``leaf`` is a descriptor of.

        Raises:
            CannotBuild: and why; destroy() is still to be called.
        """
        if len(processes) > 1 and policy is PidPolicy.ANY:
            raise CannotBuild(
                "pid",
                "A family goes by its numbers: they cannot be any. Use --pid keep or "
                "--pid new-namespace.",
            )
        root, *others = processes
        self.skeletons.append(Skeleton.build(root, leaf, policy, others, self.objects))
        for process in others:
            self.skeletons.append(self._bear(process))
        for skeleton in self.living:
            self._join_group(skeleton)

    def join(self, joined: Joined) -> Skeleton:
        """Bear one that has come later, or have one execute its new program.

        Raises:
            CannotBuild: and why.
        """
        process = joined.process
        for index, skeleton in enumerate(self.skeletons):
            same = skeleton is not None and skeleton.process.pid == process.pid
            if same and index != joined.index:
                self.bury(index)
        if joined.index < len(self.skeletons):
            skeleton = self.skeletons[joined.index]
            if skeleton is None or skeleton.process.pid != process.pid:
                raise CannotBuild("tree", "The peer has confused its processes.")
            self._take_session(skeleton, process)
            skeleton.execute(process)
        else:
            skeleton = self._bear(process)
            self.skeletons.append(skeleton)
        self._join_group(skeleton)
        return skeleton

    def bury(self, index: int) -> None:
        """End one that has ended at the source; nothing of it is left."""
        skeleton, self.skeletons[index] = self.skeletons[index], None
        if skeleton is None:
            return
        skeleton.kill()
        skeleton.reap()
        parent = self._parent(skeleton.process.parent)
        if parent is None:
            skeleton.wait()
        else:
            number, told = skeleton.process.pid, skeleton.process.exit_signal
            offspring.reap(parent.remote, number, told)

    def leave_ended(self, ended: Ended) -> None:
        """Have a child that has ended like this wait for its parent's wait(2).

        Raises:
            CannotBuild: its parent is not there, or its number is taken.
        """
        parent = self._parent(ended.parent)
        if parent is None:
            raise CannotBuild("child", "One that has ended has no parent here.")
        try:
            child = offspring.bear(
                parent.remote,
                ended.pid,
                exit_signal=ended.exit_signal,
                shares_memory=ended.status & 0x7F not in _DUMPING,
            )
        except RemoteError as error:
            raise _taken(ended.pid, error) from error
        offspring.name(child, ended.comm.encode())
        if ended.session == ended.pid:
            child.remote.syscall("setsid")
        elif ended.process_group != parent.process_group:
            group = 0 if ended.process_group == ended.pid else ended.process_group
            batch = child.remote.batch()
            batch.add("setpgid", 0, group)
            batch.run(check=False)  # a group of the dead alone has nobody to tell of
        offspring.end(child, ended.status)
        offspring.forget(parent.remote, ended.exit_signal)

    def destroy(self) -> None:
        """Kill all and wait for their ends."""
        destroy_all(self.living)

    def _parent(self, index: int) -> Skeleton | None:
        return self.skeletons[index] if 0 <= index < len(self.skeletons) else None

    def _bear(self, process: Process) -> Skeleton:
        parent = self._parent(process.parent)
        session = process.session or self.root.session
        try:
            if parent is not None and session in (process.pid, parent.session):
                bearer = parent.remote
                if process.bearer in parent.tids:
                    bearer = bearer.on(parent.tids[process.bearer])
                return self._finish(process, bearer, parent, session)
            return self._bear_aside(process, parent, session)
        except RemoteError as error:
            raise _taken(process.pid, error) from error

    def _finish(
        self, process: Process, bearer: Remote, like: Skeleton, session: int
    ) -> Skeleton:
        """A child of ``bearer``, which has the session, group and owner of ``like``."""
        child = offspring.bear(bearer, process.pid, exit_signal=process.exit_signal)
        _change_owner(child, like.process, process)
        group = like.process_group
        if session == process.pid:
            child.remote.syscall("setsid")
            group = process.pid
        return Skeleton.of_child(
            process, child, self.objects, session=session, process_group=group
        )

    def _bear_aside(
        self, process: Process, parent: Skeleton | None, session: int
    ) -> Skeleton:
        """A child of a session that its parent is not in, or with no parent here."""
        inside = [s for s in self.living if s.session == session]
        like = inside[0] if inside else parent or self.root
        begins = not inside and session != process.pid
        with _adopting(parent):
            between = offspring.bear(like.remote, session if begins else 0)
            if begins:
                between.remote.syscall("setsid")
            try:
                skeleton = self._finish(process, between.remote, like, session)
            finally:
                offspring.end(between)
                offspring.reap(like.remote, between.number)
        if begins:
            skeleton.process_group = session
        if parent and procfs.stat(skeleton.pid).parent != parent.pid:
            skeleton.destroy()
            raise CannotBuild(
                "session",
                f"pid {process.pid} is in session {session} and its parent is not: "
                "how that came about cannot be repeated.",
            )
        return skeleton

    def _take_session(self, skeleton: Skeleton, process: Process) -> None:
        """One that has executed another program may have begun a session, too."""
        session = process.session or self.root.session
        if session == skeleton.session:
            return
        if session != process.pid:
            raise CannotBuild(
                "session", f"pid {process.pid} cannot change its session."
            )
        skeleton.remote.syscall("setsid")
        skeleton.session = skeleton.process_group = session

    def _join_group(self, skeleton: Skeleton) -> None:
        process = skeleton.process
        group = process.process_group or self.root.process_group
        if group == skeleton.process_group:
            return
        joins = skeleton.remote.batch()
        joins.add("setpgid", 0, group)
        (result,) = joins.run(check=False)
        if result < 0:
            # Its leader has ended: one is made for the moment.
            try:
                with _leading(skeleton.remote, group):
                    skeleton.remote.syscall("setpgid", 0, group)
            except RemoteError as error:
                raise CannotBuild(
                    "process_group",
                    f"pid {process.pid} cannot join the process group {group}: "
                    f"{explain(error.errno or 0)}.",
                ) from error
        skeleton.process_group = group


@contextmanager
def _leading(remote: Remote, number: int) -> Iterator[None]:
    """In this block a group of this number has a leader."""
    leader = offspring.bear(remote, number, shares_memory=True)
    try:
        leader.remote.syscall("setpgid", 0, 0)
        yield
    finally:
        offspring.end(leader)
        offspring.reap(remote, number)


@contextmanager
def _adopting(parent: Skeleton | None) -> Iterator[None]:
    """In this block orphans below ``parent`` (None: us, who always do) come to it."""
    if parent is None:
        yield
        return
    remote = parent.remote
    remote.reset()
    room = remote.space(4)
    remote.syscall("prctl", _PR_GET_CHILD_SUBREAPER, room, 0, 0, 0)
    (before,) = struct.unpack("<i", remote.read(room, 4))
    remote.reset()
    remote.syscall("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        remote.syscall("prctl", _PR_SET_CHILD_SUBREAPER, before, 0, 0, 0)


def _change_owner(child: Offspring, before: Process, after: Process) -> None:
    """Make it another user's, where its parent may do that."""
    if (before.uids, before.gids, before.groups) == (
        after.uids,
        after.gids,
        after.groups,
    ):
        return
    groups = struct.pack(f"<{len(after.groups)}I", *after.groups)
    batch = child.remote.batch()
    batch.add("setgroups", len(after.groups), groups or 0)
    batch.add("setresgid", *after.gids)
    batch.add("setresuid", *after.uids)
    try:
        batch.run()
    except (RemoteError, TaskVanished) as error:
        offspring.end(child)
        raise CannotBuild(
            "credentials",
            f"pid {after.pid} has other users or groups than its parent, which may "
            "not give it these.",
        ) from error


def _taken(number: int, error: RemoteError) -> CannotBuild:
    return CannotBuild(
        "pid",
        f"A process with pid {number} cannot be born here: "
        f"{explain(error.errno or 0)}. Try --pid new-namespace.",
    )
