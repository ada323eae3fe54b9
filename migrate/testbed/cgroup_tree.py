"""The cgroup directories of a bed: the only thing of it that has a name outside.

A bed has ``migrate-testbed-NS-PID-START`` below the cgroup of its maker, with one
directory for each host. NS is the inode of the pid namespace in which PID, the
keeper, started at START: so that somebody else can tell whether he is still alive.
"""

import errno
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from migrate.testbed.errors import TestBedError

_NAME: Final = re.compile(r"migrate-testbed-(\d+)-(\d+)-(\d+)")
_EMPTY_DEADLINE_S: Final = 10.0


def make_tree() -> Path:
    """A new directory for the bed whose keeper we are."""
    pid = os.getpid()
    name = f"migrate-testbed-{_pid_namespace()}-{pid}-{_start_time(pid)}"
    tree = _own_cgroup() / name
    try:
        tree.mkdir()
    except OSError as e:
        raise TestBedError(
            f"The test bed cannot make the cgroup {tree}: {e.strerror}. It needs "
            "root and a writable cgroup2 file system."
        ) from e
    return tree


def sweep() -> None:
    """Remove what beds whose keeper was killed have left beside ours."""
    for tree in _own_cgroup().glob("migrate-testbed-*"):
        match = _NAME.fullmatch(tree.name)
        if match is None or int(match[1]) != _pid_namespace():
            continue
        if _start_time(int(match[2])) != int(match[3]):
            kill_and_remove(tree)


def kill_and_remove(tree: Path) -> None:
    """Kill all that lives in ``tree``, frozen or not, and remove it.

    Raises:
        TestBedError: something in it would not die.
    """
    try:
        kill(tree)
        _wait_until_empty(tree)
        for directory, _, _ in os.walk(tree, topdown=False):
            os.rmdir(directory)
    except OSError as e:
        # Another sweeper may have removed it under us; anything else is news.
        if e.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def kill(tree: Path) -> None:
    """Kill all that lives in ``tree`` and below."""
    (tree / "cgroup.kill").write_text("1")


def _wait_until_empty(tree: Path) -> None:
    deadline = time.monotonic() + _EMPTY_DEADLINE_S
    events = os.open(tree / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        changed = select.poll()
        changed.register(events, select.POLLPRI)
        while b"populated 1" in os.pread(events, 4096, 0):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                pids = ", ".join(map(str, _members(tree)))
                raise TestBedError(
                    f"The cgroup {tree} cannot be removed: {pids} will not die."
                )
            changed.poll(left_s * 1000)
    finally:
        os.close(events)


def _members(tree: Path) -> Iterator[int]:
    # Not rglob(): it gives up at the first folder that has gone.
    for folder, _, _ in os.walk(tree):
        try:
            text = Path(folder, "cgroup.procs").read_text()
        except OSError:
            continue  # that cgroup has gone
        yield from map(int, text.split())


def _own_cgroup() -> Path:
    """Our cgroup version 2, as a directory: cgroups(7), proc_pid_mountinfo(5)."""
    own = next(
        (
            line[len("0::") :]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")
        ),
        None,
    )
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if own is not None and right.startswith("cgroup2 "):
            root, mount_point = left.split(" ")[3:5]
            if own == root or own.startswith(root.rstrip("/") + "/"):
                return Path(mount_point, os.path.relpath(own, root))
    raise TestBedError(
        "The test bed needs cgroup version 2, and finds no cgroup2 file system "
        "mounted. Mount one: mount -t cgroup2 none /sys/fs/cgroup."
    )


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot; None if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22 of proc_pid_stat(5); the name before it may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
