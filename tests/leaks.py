"""What a test may leave behind without anybody noticing, and how to notice.

A snapshot holds everything of ours that outlives a careless function: processes,
threads, descriptors, cgroups, links, named network namespaces, mounts and temporary
files. Taken before and after a test, the difference is what the test left.

Two runs on one machine must not accuse one another. Processes are ours if they
descend from us, or carry our token in their environment: an orphan has another
parent, but keeps the environment that it was started with. A file or a cgroup that
bears the pid of a living stranger in its name is the stranger's, and so is a cgroup
with nobody in it but strangers.
"""

import fnmatch
import gc
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

TOKEN_NAME: Final = "MIGRATE_TEST_RUN"
TOKEN: Final = os.environ.setdefault(TOKEN_NAME, uuid.uuid4().hex)

TEMPORARY: Final = tuple(
    Path(folder) for folder in ("/tmp", "/var/tmp", "/dev/shm", "/run")
)
OURS: Final = "migrate-*"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of ours that is there now, in words that say what it is."""

    processes: frozenset[str]
    threads: frozenset[str]
    descriptors: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    files: frozenset[str]


def snapshot() -> Snapshot:
    """What is there now. Takes some milliseconds: it reads all of /proc."""
    gc.collect()  # what only a reference cycle holds open is not left behind
    family = _family()
    return Snapshot(
        processes=frozenset(family.values()),
        threads=frozenset(_threads()),
        descriptors=frozenset(_descriptors()),
        cgroups=frozenset(_not_peopled_by_strangers(_cgroups(), family)),
        links=frozenset(_not_a_strangers(_names("/sys/class/net"), family)),
        namespaces=frozenset(_not_a_strangers(_names("/run/netns"), family)),
        mounts=frozenset(_not_a_strangers(_mounts(), family)),
        files=frozenset(_not_a_strangers(_files(), family)),
    )


def difference(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """What is in ``after`` and was not in ``before``: one line each."""
    return tuple(
        f"{field.name}: {thing}"
        for field in fields(Snapshot)
        for thing in sorted(getattr(after, field.name) - getattr(before, field.name))
    )


def left_since(before: Snapshot, *, patience_s: float) -> tuple[str, ...]:
    """What is still there ``patience_s`` later and was not in ``before``.

    The kernel takes some things down after the last call that concerned them has
    returned (network namespaces, their links), and tells nobody when it is done.
    """
    deadline_s = time.monotonic() + patience_s
    left = difference(before, snapshot())
    while left and time.monotonic() < deadline_s:
        time.sleep(0.05)
        still = difference(before, snapshot())
        # What has come since is a stranger's: whoever is ours was there at the end.
        left = tuple(thing for thing in left if thing in still)
    return left


def _family() -> dict[int, str]:
    """Our descendants, and whoever carries our token; a line for each."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    marked: set[int] = set()
    token = f"{TOKEN_NAME}={TOKEN}".encode()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The name may hold spaces and parentheses: proc_pid_stat(5), field 2.
        name, _, rest = stat.partition("(")[2].rpartition(")")
        _, parent, *_ = rest.split()
        parents[pid] = int(parent)
        lines[pid] = f"{pid} {name!r}, child of {parent}"
        try:
            if token in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                marked.add(pid)
        except OSError:
            pass  # a zombie has none, and a stranger's is closed to us
    ours = {pid for pid in lines if pid in marked or _descends(pid, parents)}
    return {pid: lines[pid] for pid in ours - {os.getpid()}}


def _descends(pid: int, parents: dict[int, int]) -> bool:
    me = os.getpid()
    while pid in parents and pid != me:
        pid = parents[pid]
    return pid == me


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        # trio keeps idle worker threads for ten seconds, to use them again.
        if not thread.name.startswith("Trio thread"):
            yield f"{thread.name} ({thread.native_id})"


def _descriptors() -> Iterator[str]:
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in os.listdir(folder):
            try:
                link = os.readlink(number, dir_fd=folder)
            except FileNotFoundError:
                continue  # the duplicate through which listdir() read
            if int(number) != folder:
                yield f"{number} is {link}"
    finally:
        os.close(folder)


def _cgroups() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, superblock = line.partition(" - ")
        if superblock.split()[0] == "cgroup2":
            # Not rglob(): others make and remove theirs while we look, and it gives
            # up at the first folder that has gone.
            for folder, names, _ in os.walk(mount.split()[4]):
                yield from (f"{folder}/{name}" for name in fnmatch.filter(names, OURS))


def _names(folder: str) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except FileNotFoundError:
        pass


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield f"{line.split()[4]} ({line.partition(' - ')[2].split()[0]})"


def _files() -> Iterator[str]:
    for folder in TEMPORARY:
        yield from (str(path) for path in folder.glob(OURS))


def _not_a_strangers(names: Iterator[str], family: dict[int, str]) -> Iterator[str]:
    """Those that no living stranger signed with its pid."""
    ours = {os.getpid(), *family}
    for name in names:
        if not any(pid not in ours and _lives(pid) for pid in _signatures(name)):
            yield name


def _not_peopled_by_strangers(
    folders: Iterator[str], family: dict[int, str]
) -> Iterator[str]:
    """Those that hold nobody, or at least one of us."""
    ours = {os.getpid(), *family}
    for folder in _not_a_strangers(folders, family):
        try:
            text = Path(folder, "cgroup.procs").read_text()
        except OSError:
            continue  # it has gone meanwhile
        pids = {int(line) for line in text.split()}
        # One in a pid namespace that ours is not an ancestor of is shown as 0.
        if not pids or pids & (ours | {0}):
            yield folder


def _signatures(name: str) -> Iterator[int]:
    """The pids in a name: ``migrate-PID`` or ``migrate-WHAT-NAMESPACE-PID-START``."""
    here = str(Path("/proc/self/ns/pid").stat().st_ino)
    for namespace, pid in re.findall(r"migrate-(?:[a-z]+-(\d+)-)?(\d+)", name):
        # In another namespace it is the pid of somebody else.
        if namespace in ("", here):
            yield int(pid)


def _lives(pid: int) -> bool:
    """Whether there is such a process, and more of it than its exit status."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")
