"""Memory and files without a name that somebody outside of the tree has, too.

What two processes share is one object; if one of them stayed, it would be two
afterwards. Only by looking at everybody else can it be found.
"""

import os
from collections.abc import Collection, Iterator

from migrate.errors import Reason, printable
from migrate.kernel import lineage, procfs
from migrate.preflight.subject import Subject
from migrate.shared_objects import device_of, is_object, may_be_object
from precopy.address_space import Vma
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid

# By device and inode as maps prints them: what it is called.
_Objects = dict[tuple[str, int], str]


def reasons(subject: Subject, family: Collection[Pid]) -> Iterator[Reason]:
    """One for each process outside of ``family`` that shares something with this."""
    objects = _objects(subject)
    if not objects:
        return
    for other in procfs.pids():
        if other in family or other in (subject.pid, os.getpid()):
            continue
        key = _shares(other, objects)
        if key is None or lineage.descends(other, {subject.pid, *family}):
            continue
        yield Reason(
            "shared_memory",
            f"pid {subject.pid} shares {printable(objects[key])} with pid {other}, "
            "which is not one of its descendants. What stays with somebody else is "
            "not carried: move their common parent, or end the other process.",
            subject.pid,
        )


def _objects(subject: Subject) -> _Objects:
    found: _Objects = {}
    for vma in subject.space.vmas:
        if may_be_object(vma) and (vma.device, vma.inode) not in found:
            path = f"/proc/{subject.pid}/map_files/{vma.start:x}-{vma.end:x}"
            if _is_object(path, vma.name):
                found[vma.device, vma.inode] = vma.name
    for view in subject.views:
        if _is_object(f"/proc/{subject.pid}/fd/{view.number}", view.link):
            device = f"{os.major(view.device):02x}:{os.minor(view.device):02x}"
            found[device, view.inode] = view.link
    return found


def _is_object(path: str, name: str) -> bool:
    try:
        return is_object(os.stat(path), name)
    except OSError:
        return False  # unmapped since, or not ours to look at: see memory


def _shares(pid: Pid, objects: _Objects) -> tuple[str, int] | None:
    """What of it another process has; nothing of one that we may not look at."""
    try:
        vmas: tuple[Vma, ...] = procfs.read_maps(pid).vmas
    except (TaskVanished, PermissionError, KernelError):
        return None
    for vma in vmas:
        if (vma.device, vma.inode) in objects:
            return vma.device, vma.inode
    names = set(objects.values())
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return None
    for number in numbers:
        try:
            if os.readlink(f"{folder}/{number}") not in names:
                continue
            status = os.stat(f"{folder}/{number}")
        except OSError:
            continue  # closed meanwhile
        if (device_of(status), status.st_ino) in objects:
            return device_of(status), status.st_ino
    return None
