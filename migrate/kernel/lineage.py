"""A process and all its descendants, as /proc shows them.

described   proc_tid_children(5): in the order of their births, and complete only while
            none of them is born or ends. So who looks at a family that runs looks
            again, and who needs the truth freezes it first.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from migrate.kernel import procfs
from migrate.kernel.procfs import Stat
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid


@dataclass(frozen=True, slots=True)
class Relative:
    """A process and whose child it is."""

    pid: Pid
    parent: Pid
    bearer: Tid  # the thread of its parent that it belongs to
    index: int = -1  # its place in a tree that has one for it already


def family(root: Pid) -> list[Relative]:
    """``root`` and its descendants that live, parents before their children.

    Raises:
        TaskVanished: there is no ``root``.
    """
    parent = procfs.stat(root).parent
    found = [Relative(root, parent, Tid(parent))]
    for relative in found:
        found += [
            Relative(pid, relative.pid, tid)
            for pid, tid in _children(relative.pid)
            if not _has_ended(pid)
        ]
    return found


def descends(pid: Pid, family: Collection[Pid]) -> bool:
    """Whether it is, or comes from, one of ``family``; also if it has ended since."""
    while pid not in family:
        try:
            pid = procfs.stat(pid).parent
        except TaskVanished:
            return True
        if pid <= 1:
            return False
    return True


def ended_children(parent: Pid) -> list[Stat]:
    """Its children that have ended and were not waited for yet."""
    found = []
    for pid, _ in _children(parent):
        try:
            stat = procfs.stat(pid)
        except TaskVanished:
            continue  # it was waited for just now
        if stat.state == "Z":
            found.append(stat)
    return found


def _children(parent: Pid) -> Iterator[tuple[Pid, Tid]]:
    try:
        threads = procfs.threads(parent)
    except TaskVanished:
        return
    for tid in threads:
        try:
            text = procfs.read(parent, f"task/{tid}/children")
        except TaskVanished:
            continue  # that thread ended; its children went over to another one
        for child in procfs.parse_children(text):
            yield child, tid


def _has_ended(pid: Pid) -> bool:
    try:
        return procfs.stat(pid).state in "ZX"
    except TaskVanished:
        return True
