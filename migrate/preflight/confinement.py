"""What confines the process here, and what sets its rights apart from its owner's.

It is to have over there what it has here, neither less nor more. Where that cannot be
made sure of, it is refused: moving must not be a way out of a sandbox.
"""

import os
import stat
from collections.abc import Iterator
from typing import Final

from migrate.errors import Reason, printable
from migrate.kernel import procfs
from migrate.kernel.procfs import Status
from migrate.preflight.subject import Subject, same_file
from precopy.errors import TaskVanished
from precopy.ids import Pid

_NAMESPACES: Final = {
    "cgroup": "cgroup",
    "ipc": "ipc",
    "mnt": "mount",
    "net": "network",
    "pid": "pid",
    "pid_for_children": "pid (for its children)",
    "time": "time",
    "time_for_children": "time (for its children)",
    "user": "user",
    "uts": "uts",
}


def reasons(subject: Subject) -> Iterator[Reason]:
    """What is in the way in the rights and the confinement of the process."""
    yield from _namespaces(subject)
    yield from _sandbox(subject)
    yield from _identity(subject)
    yield from _executable(subject)
    yield from _threads(subject)


def _namespaces(subject: Subject) -> Iterator[Reason]:
    ours = procfs.namespaces(Pid(os.getpid()))
    theirs = procfs.namespaces(subject.pid)
    for link, name in _NAMESPACES.items():
        # "pid_for_children" is empty while a new namespace has no init yet.
        if link in ours and theirs.get(link) != ours[link]:
            yield Reason(
                "namespace",
                f"pid {subject.pid} is in another {name} namespace than migrate. "
                "Containers are not carried yet; if you are in one, ask from its "
                "host.",
                subject.pid,
            )
    for tid in subject.tasks:
        try:
            if procfs.namespaces(subject.pid, tid) == theirs:
                continue
        except TaskVanished:
            continue
        yield Reason(
            "namespace",
            f"Thread {tid} of pid {subject.pid} is in other namespaces than its "
            "process, which cannot be carried.",
            subject.pid,
        )


def _sandbox(subject: Subject) -> Iterator[Reason]:
    pid, status = subject.pid, subject.status
    if status.seccomp:
        mode = "strict mode" if status.seccomp == 1 else "a filter"
        yield Reason(
            "seccomp",
            f"pid {pid} is confined by seccomp ({mode}), which is not carried yet: "
            "over there it could do more than here.",
            pid,
        )
    elif status.no_new_privs:
        # Landlock cannot be seen from outside. Who has no privileges must set this
        # flag before it confines itself (landlock_restrict_self(2)).
        yield Reason(
            "no_new_privs",
            f"pid {pid} may not gain privileges (no_new_privs), so it may be confined "
            "by Landlock, which nobody can see from outside: over there it could do "
            "more than here. Start it without (systemd: NoNewPrivileges=no).",
            pid,
        )
    theirs, ours = _security_label(pid), _security_label(Pid(os.getpid()))
    if theirs != ours and theirs not in (b"", b"unconfined"):
        label = printable(theirs.decode("utf-8", "surrogateescape"))
        yield Reason(
            "security_label",
            f"pid {pid} is confined by a security module (as {label}), which is not "
            "carried: over there it could do more than here.",
            pid,
        )


def _security_label(pid: Pid) -> bytes:
    """What AppArmor, SELinux or Smack calls it; empty where there is none of them."""
    try:
        return procfs.read(pid, "attr/current").rstrip(b"\0\n")
    except TaskVanished:
        raise
    except OSError:
        return b""  # EINVAL: no module here gives labels


def _identity(subject: Subject) -> Iterator[Reason]:
    pid, status = subject.pid, subject.status
    for what, ids in (("user", status.uids), ("group", status.gids)):
        if not ids.real == ids.effective == ids.saved:
            yield Reason(
                "credentials",
                f"pid {pid} has more than one {what} id (real {ids.real}, effective "
                f"{ids.effective}, saved {ids.saved}), which is not carried yet "
                "(see docs/kinds.md).",
                pid,
            )
    held, ours = status.capabilities, procfs.status(Pid(os.getpid())).capabilities
    if status.uids.effective != 0:
        if held.permitted | held.inheritable | held.ambient:
            yield Reason(
                "credentials",
                f"pid {pid} of user {status.uids.effective} has capabilities that come "
                f"with no user (permitted {held.permitted:#x}, inheritable "
                f"{held.inheritable:#x}, ambient {held.ambient:#x}). Over there nobody "
                "could give it these (see docs/kinds.md).",
                pid,
            )
    elif more := (held.permitted | held.bounding) & ~(ours.permitted | ours.bounding):
        yield Reason(
            "credentials",
            f"pid {pid} has capabilities that migrate has not ({more:#x}), so migrate "
            "cannot give it these again. Run migrate with them.",
            pid,
        )


def _executable(subject: Subject) -> Iterator[Reason]:
    pid = subject.pid
    path = f"/proc/{pid}/exe"
    name = printable(procfs.link(pid, "exe"))
    try:
        found = os.stat(path)
        capable = _has_capabilities(path)
    except (FileNotFoundError, ProcessLookupError):
        raise TaskVanished(pid) from None
    if capable or found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        yield Reason(
            "executable",
            f"pid {pid} runs {name}, which gives its user more rights than he has "
            "(setuid, setgid or capabilities of a file): that is not carried.",
            pid,
        )
    if not _is_named(pid, procfs.link(pid, "exe"), found):
        yield Reason(
            "executable",
            f"pid {pid} runs {name}, and that file is no longer there under its name: "
            "it was replaced or deleted, perhaps by an upgrade. Restart the program.",
            pid,
        )


def _has_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except (FileNotFoundError, ProcessLookupError):
        raise
    except OSError:
        return False  # ENODATA: none; ENOTSUP: the file system has no such thing


def _is_named(pid: Pid, name: str, found: os.stat_result) -> bool:
    """Whether the name leads the process to that very file."""
    try:
        there = os.stat(os.fsencode(f"/proc/{pid}/root{name}"))
    except OSError:
        return False
    return same_file(there, found)


def _threads(subject: Subject) -> Iterator[Reason]:
    leader = _rights(subject.status)
    for tid, status in subject.tasks.items():
        if _rights(status) != leader:
            yield Reason(
                "thread",
                f"Thread {tid} ({printable(status.name)}) of pid {subject.pid} has "
                "other rights than its process (capabilities, seccomp or "
                "no_new_privs), which cannot be carried.",
                subject.pid,
            )


def _rights(status: Status) -> tuple[object, ...]:
    # The ids as well, but of those the kind "credentials" knows.
    return status.capabilities, status.seccomp, status.no_new_privs
