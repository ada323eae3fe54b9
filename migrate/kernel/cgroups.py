"""Cgroup v2: where a process belongs, and a leaf of ours in which a tree is frozen.

described   Documentation/admin-guide/cgroup-v2.rst; cgroups(7)

Why a cgroup and not ptrace or SIGSTOP: a process that is stopped by ptrace runs on
when its tracer dies, and anybody with its uid may continue a SIGSTOP. A frozen cgroup
stays frozen, whoever dies, and SIGKILL still works in it.

Two things are slow or worse. The kernel rate-limits the notifications of
cgroup.events, so a poll() for ``frozen 1`` may return some 15 ms after the fact; who
is in a hurry writes ``freeze``, interrupts every thread with ptrace, collects the
stops, and asks ``is_frozen`` once. And a move out of a frozen leaf thaws what moves.

A hybrid host has its cgroup2 mount beside those of v1 and with no controller in it; the
freezer needs none.
"""

import os
import select
import time
from collections.abc import Callable, Iterator
from errno import EBUSY, ENODEV, ENOENT, ESRCH
from pathlib import Path
from typing import Final

from migrate.kernel import procfs
from precopy.errors import TaskVanished
from precopy.ids import Pid

LEAF_PREFIX: Final = "migrate-"
_LOOK_AGAIN_S: Final = 0.002  # a notification may come this late and nobody minds
_EMPTY_WITHIN_S: Final = 5.0  # killed tasks leave after their memory is freed


class NoUnifiedHierarchy(OSError):
    """No cgroup2 file system that we can reach the process through."""


def current(pid: Pid) -> str:
    """The path of the v2 cgroup that ``pid`` is in, from the hierarchy's root.

    Raises:
        TaskVanished: there is no such process.
        NoUnifiedHierarchy: the kernel has no cgroup v2.
    """
    for membership in procfs.cgroups(pid):
        if membership.hierarchy == 0:
            return membership.path.removesuffix(" (deleted)")
    raise NoUnifiedHierarchy(
        ENODEV, f"pid {pid} is in no cgroup v2. Mount cgroup2 (see docs/kernel.md)."
    )


def directory(path: str) -> str:
    """Where the cgroup ``path`` can be reached as a directory.

    Raises:
        NoUnifiedHierarchy: cgroup2 is not mounted here, or this part of it is not.
    """
    for mount in procfs.mounts(Pid(os.getpid())):
        if mount.filesystem != "cgroup2":
            continue
        root = mount.root.rstrip("/")
        if path == root or path.startswith(f"{root}/"):
            return (mount.mount_point + path[len(root) :]).rstrip("/")
    raise NoUnifiedHierarchy(
        ENODEV, f"The cgroup {path} is on no cgroup2 file system that is mounted here."
    )


def leaf_path(parent: str, transaction: str) -> str:
    """Where the leaf of a transaction below the cgroup ``parent`` is, or would be."""
    return f"{parent.rstrip('/')}/{LEAF_PREFIX}{transaction}"


def takes_processes(path: str) -> bool:
    """Whether the cgroup ``path`` is there and may hold processes of its own.

    One that gives controllers to those below it may not, nor may a threaded one
    (cgroup-v2.rst, "No Internal Process Constraint" and "Threads").
    """
    try:
        where = Path(directory(path))
        given = (where / "cgroup.subtree_control").read_text()
        kind = (where / "cgroup.type").read_text()
    except OSError:
        return False
    return not given.strip() and kind.strip() == "domain"


class Leaf:
    """A cgroup of ours that holds one tree and nothing else.

    It hangs below the cgroup that the tree was in, so every limit there still holds.
    Nothing thaws or empties it by itself: not the end of this object, not of us.
    """

    def __init__(self, path: str) -> None:
        """Take up the leaf at ``path``, which exists.

        Raises:
            OSError: it cannot be opened.
        """
        self.path: Final = path
        self._directory: Final = directory(path)
        self._origins: dict[Pid, str] = {}
        # Open from the start: the frozen section pays for no path walk.
        self._freeze_fd = self._open("cgroup.freeze", os.O_RDWR)
        try:
            self._events_fd = self._open("cgroup.events", os.O_RDONLY)
        except BaseException:
            os.close(self._freeze_fd)
            raise

    @classmethod
    def create(cls, parent: str, transaction: str) -> "Leaf":
        """Make the leaf of a transaction below the cgroup ``parent``.

        Raises:
            OSError: it exists already (EEXIST), or the host allows no more of them
                (EAGAIN); then nothing was made.
        """
        path = leaf_path(parent, transaction)
        os.mkdir(os.fsencode(directory(path)))
        try:
            return cls(path)
        except BaseException:
            os.rmdir(os.fsencode(directory(path)))
            raise

    @property
    def transaction(self) -> str:
        """What ``create`` was given."""
        return self.path.rpartition("/")[2].removeprefix(LEAF_PREFIX)

    def adopt(self, pid: Pid) -> None:
        """Move ``pid`` in, with all its threads, and remember where it was.

        Raises:
            TaskVanished: there is no such process.
            OSError: it may not be moved; it is where it was.
        """
        origin = current(pid)
        _move(pid, self._directory)
        if origin != self.path:
            self._origins[pid] = origin

    def members(self) -> tuple[Pid, ...]:
        """The processes in it, without zombies."""
        return _members(self._directory)

    def freeze(self) -> None:
        """Ask for the freeze; it is true once ``is_frozen`` says so."""
        os.pwrite(self._freeze_fd, b"1", 0)

    def thaw(self) -> None:
        """Let everything in it run."""
        os.pwrite(self._freeze_fd, b"0", 0)

    def is_frozen(self) -> bool:
        """Whether every task in it has stopped; also true of an empty one."""
        return b"frozen 1" in os.pread(self._events_fd, 256, 0)

    def is_populated(self) -> bool:
        """Whether a task in it is still alive."""
        return b"populated 1" in os.pread(self._events_fd, 256, 0)

    def wait_frozen(self, timeout_s: float) -> bool:
        """Whether it is frozen within ``timeout_s``; may notice some ms late."""
        return self._wait(self.is_frozen, timeout_s)

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether the last task in it is gone within ``timeout_s``."""
        return self._wait(lambda: not self.is_populated(), timeout_s)

    def kill(self) -> None:
        """SIGKILL to everything in it, also to what is being forked just now.

        Frozen or not; returns before they are gone.
        """
        fd = self._open("cgroup.kill", os.O_WRONLY)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)

    def dissolve(self, home: str | None = None) -> None:
        """Move each process back to where it was adopted from, and remove the leaf.

        What was born in here, or adopted by somebody before us, goes to ``home``
        (the cgroup above, if none is given), and so does what comes from a cgroup
        that has gone. Moving thaws. A leaf that is gone already is dissolved.

        Raises:
            OSError: a process could not be moved or will not end; it is in the
                leaf, and the leaf still there.
        """
        parent = self.path.rpartition("/")[0] or "/"
        fallback = parent if home is None else home
        try:
            while members := self.members():
                for pid in members:
                    self._send_home(pid, fallback)
            self._remove()
        except FileNotFoundError:
            pass
        self.close()

    def close(self) -> None:
        """Let go of the descriptors; the leaf and what is in it stay as they are."""
        for fd in (self._freeze_fd, self._events_fd):
            if fd >= 0:
                os.close(fd)
        self._freeze_fd = self._events_fd = -1

    def _send_home(self, pid: Pid, fallback: str) -> None:
        try:
            try:
                _move(pid, directory(self._origins.get(pid, fallback)))
            except FileNotFoundError:
                _move(pid, directory(fallback))
        except TaskVanished:
            pass  # it ended: that empties the leaf as well

    def _remove(self) -> None:
        deadline = time.monotonic() + _EMPTY_WITHIN_S
        while True:
            try:
                os.rmdir(os.fsencode(self._directory))
                return
            except OSError as error:
                # A task that is about to end is in no list any more, yet counts.
                left_s = deadline - time.monotonic()
                if error.errno != EBUSY or left_s <= 0 or not self.wait_empty(left_s):
                    raise

    def _wait(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        events = select.poll()
        events.register(self._events_fd, select.POLLPRI)
        while not reached():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            events.poll(1000 * min(left_s, _LOOK_AGAIN_S))
        return True

    def _open(self, name: str, flags: int) -> int:
        path = os.fsencode(f"{self._directory}/{name}")
        return os.open(path, flags | os.O_CLOEXEC)


def leaves() -> Iterator[str]:
    """The path of every leaf on this host, whoever made it."""
    for mount in procfs.mounts(Pid(os.getpid())):
        if mount.filesystem != "cgroup2":
            continue
        for where, names, _ in os.walk(mount.mount_point):
            inside = mount.root.rstrip("/") + where[len(mount.mount_point) :]
            for name in names:
                if name.startswith(LEAF_PREFIX):
                    yield f"{inside.rstrip('/')}/{name}"
        return


def sweep(is_stale: Callable[[str], bool]) -> tuple[str, ...]:
    """Dissolve every leaf whose path ``is_stale`` says yes to; give back their paths.

    Dissolving thaws. Only who has read the journal can say that a frozen leaf is
    stale: one without a journal may hold a process that runs elsewhere by now.
    """
    stale = tuple(filter(is_stale, leaves()))
    for path in stale:
        try:
            Leaf(path).dissolve()
        except FileNotFoundError:
            pass  # somebody else was quicker
    return stale


def _members(where: str) -> tuple[Pid, ...]:
    with open(os.fsencode(f"{where}/cgroup.procs"), "rb") as procs:
        # The same pid may come twice (cgroup-v2.rst, "cgroup.procs").
        return tuple(sorted({Pid(int(line)) for line in procs}))


def _move(pid: Pid, where: str) -> None:
    path = os.fsencode(f"{where}/cgroup.procs")
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(pid).encode())
    except OSError as error:
        if error.errno in (ESRCH, ENOENT):
            raise TaskVanished(pid) from error
        raise
    finally:
        os.close(fd)
