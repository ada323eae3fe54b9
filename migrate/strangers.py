"""Why a descriptor cannot go: said before anything is touched.

What no kind claims is refused by what its link in /proc/PID/fd says. So is what others
have a share in: a description that a process outside of the tree has too would be two
afterwards.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Final, cast

from migrate.errors import Reason, printable
from migrate.kernel import kcmp, lineage, procfs
from migrate.kernel.procfs import FdView
from migrate.kinds import table
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid

SIGNALS: Final = (
    "sends signals when it is ready (O_ASYNC, F_SETOWN or F_SETSIG), which is not "
    "carried. Close it."
)

_CLOSE: Final = "Close it, or move the process when it does not use it."
# Where the link begins so, it is that.
_BY_LINK: Final = (
    ("socket:[", "a socket", _CLOSE),
    ("anon_inode:[fanotify]", "a fanotify group", _CLOSE),
    ("anon_inode:[io_uring]", "an io_uring", _CLOSE),
    (
        "anon_inode:[userfaultfd]",
        "a userfaultfd (or the process is being moved already)",
        _CLOSE,
    ),
    ("anon_inode:[perf_event]", "a perf event", "End the measurement first."),
    ("anon_inode:bpf", "a BPF object", _CLOSE),
    ("anon_inode:[pidfd]", "a pidfd, which names a process of this host", _CLOSE),
    ("pidfd:[", "a pidfd, which names a process of this host", _CLOSE),
    ("anon_inode:seccomp notify", "a seccomp listener", _CLOSE),
    ("anon_inode:[landlock-ruleset]", "a Landlock rule set", _CLOSE),
    ("anon_inode:kvm", "part of a virtual machine (KVM)", _CLOSE),
    ("anon_inode:[vfio", "a device given to the process (VFIO)", _CLOSE),
    ("anon_inode:dma-buf", "a DMA buffer", _CLOSE),
    ("/dmabuf:", "a DMA buffer", _CLOSE),
    ("anon_inode:sync_file", "a GPU fence", _CLOSE),
    ("/memfd:", "a memfd of huge pages (memfd_create)", _CLOSE),
    ("/secretmem", "secret memory (memfd_secret)", _CLOSE),
    ("/dev/dri/", "a graphics card", _CLOSE),
    ("/dev/nvidia", "a graphics card", _CLOSE),
    ("mnt:[", "a mount namespace", _CLOSE),
    ("net:[", "a network namespace", _CLOSE),
    ("pid:[", "a pid namespace", _CLOSE),
    ("user:[", "a user namespace", _CLOSE),
)
_TERMINAL_MAJORS: Final = frozenset({4, 5, 204, *range(136, 144)})
_TERMINAL: Final = (
    "Start the program with its input and output elsewhere (< /dev/null > FILE 2>&1)."
)


def reasons(
    pid: Pid, views: Iterable[FdView], family: Collection[Pid] = ()
) -> list[Reason]:
    """Everything about these descriptors of ``pid`` that is in the way.

    What it shares with its ``family``, which goes along, is not.

    Reads /proc only, and compares by kcmp(2); the process does not notice.
    """
    found: list[Reason] = []
    unshared: list[FdView] = []
    joined: list[FdView] = []
    for view in views:
        try:
            kind, reason, exclusive = _judge(view)
        except TaskVanished:
            continue  # closed while we looked
        if reason is not None:
            found.append(_reason(kind, view, reason))
        elif exclusive:
            unshared.append(view)
        if reason is None and _other_end(view) is not None:
            joined.append(view)
    return [
        *found,
        *_shared(pid, unshared, family),
        *_severed(joined, {pid, *family}),
    ]


def stranger(view: FdView) -> str:
    """What a descriptor is that no kind claims; goes on after "fd 17 of pid 4711 "."""
    link = printable(view.link)
    if stat.S_ISCHR(view.mode):
        if os.major(view.rdev) in _TERMINAL_MAJORS:
            return f"is a terminal ({link}), which cannot be carried. {_TERMINAL}"
        return f"is the device {link}, which cannot be carried. {_CLOSE}"
    if stat.S_ISBLK(view.mode):
        return f"is the block device {link}, which cannot be carried. {_CLOSE}"
    for beginning, name, way_out in _BY_LINK:
        if view.link.startswith(beginning):
            return f"is {name}, which cannot be carried. {way_out}"
    return f"is {link}, which cannot be carried. {_CLOSE}"


def _judge(view: FdView) -> tuple[str, str | None, bool]:
    """Its kind's name, why it cannot go, and whether it must be the process's alone."""
    module = table.claim(view)
    if module is None:
        return "descriptor", stranger(view), False
    name = module.KIND.name
    if view.info.flags & os.O_ASYNC:
        return name, f"({printable(view.link)}) {SIGNALS}", False
    # Such a lock goes with the description: others who have it hold the lock as well.
    lock = any(lock.kind in ("FLOCK", "OFDLCK") for lock in view.info.locks)
    return name, module.refuse(view), module.KIND.exclusive or lock


def _shared(
    pid: Pid, views: Iterable[FdView], family: Collection[Pid]
) -> Iterator[Reason]:
    """Those of the descriptors that others have too, one reason for each.

    Processes that we may not look into are passed over.
    """
    by_link: defaultdict[str, list[FdView]] = defaultdict(list)
    for view in views:
        by_link[view.link].append(view)
    if not by_link:
        return
    for other in procfs.pids():
        if other in (pid, os.getpid()) or other in family:
            continue
        for number, link in _links(other):
            for view in tuple(by_link.get(link, ())):
                if _is_same(view, other, number):
                    if family and lineage.descends(other, family):
                        continue  # born since; it will be looked at as well
                    by_link[link].remove(view)
                    yield _reason(
                        "descriptor",
                        view,
                        f"is {printable(link)}, which pid {other} has too (as fd "
                        f"{number}). What two processes share is not carried: end "
                        "the other process, or close it there.",
                    )


def _severed(views: Iterable[FdView], family: Collection[Pid]) -> Iterator[Reason]:
    """Those whose other end is not in the tree, one reason for each."""
    apart = list(views)
    for pid in family:
        if not apart:
            return
        inside = {link for _, link in _links(pid)}
        apart = [view for view in apart if _other_end(view) not in {None, *inside}]
    for view in apart:
        link = _other_end(view)
        holders = [
            pid
            for pid in procfs.pids()
            if any(found == link for _, found in _links(pid))
        ]
        if link is None or any(
            pid in family or lineage.descends(pid, family) for pid in holders
        ):
            continue  # it has closed since, or was passed on
        who = f"pid {holders[0]} has" if holders else "nobody who can be seen has"
        yield _reason(
            "descriptor",
            view,
            f"is {printable(view.link)}, whose other end ({link}) {who}. What leads "
            "out of the tree is not carried: end the other process, or close it.",
        )


def _other_end(view: FdView) -> str | None:
    """What must be in the tree, too."""
    ask = getattr(table.claim(view), "other_end", None)
    return None if ask is None else cast("str | None", ask(view))


def _links(pid: Pid) -> Iterator[tuple[int, str]]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return  # it ended, or is not ours to look into
    for name in names:
        try:
            yield int(name), os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # closed meanwhile


def _is_same(view: FdView, pid: Pid, number: int) -> bool:
    try:
        if stat.S_ISFIFO(view.mode):
            # One pipe, whichever the end.
            found = os.stat(f"/proc/{pid}/fd/{number}")
            return (found.st_dev, found.st_ino) == (view.device, view.inode)
        return kcmp.order_files(view.pid, view.number, pid, number) == 0
    except (KernelError, OSError):
        return False  # closed meanwhile, or not ours to compare


def _reason(kind: str, view: FdView, reason: str) -> Reason:
    message = f"fd {view.number} of pid {view.pid} {reason}"
    return Reason(kind, message, pid=view.pid, fd=view.number)
