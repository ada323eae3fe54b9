"""Every reason why a process cannot go, before anything of it is touched.

All that is read is /proc, and what kcmp(2) and PAGEMAP_SCAN answer about a process that
does not notice. What cannot be seen from outside without touching it (securebits, what
lies in a queue) the kinds find when they dump.

The rule: what no kind carries is refused by name, never left behind in silence. And a
process must not shed by moving what confines it here: where a confinement cannot be
carried, or not even be seen (Landlock), it stays.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from migrate import strangers
from migrate.errors import Reason, printable
from migrate.kernel import lineage, procfs
from migrate.kinds import table
from migrate.preflight import confinement, memory, sharing, standing
from migrate.preflight.subject import Subject
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid

_BIRTHS_MAX: Final = 5
_PASSING: Final = frozenset({"sharing", "descriptor", "pipe", "unix_socket"})
_ASK_AGAIN_MAX: Final = 100  # a program may start and end threads without a pause
# Parents that take the end of a child as it comes.
_SHELLS_AND_INITS: Final = frozenset({"init", "systemd", "sh", "bash", "dash", "zsh"})


def reasons(pid: Pid, *, own_pids: Collection[Pid] = ()) -> list[Reason]:
    """Every reason why the tree of ``pid`` cannot be moved, as far as one sees.

    ``own_pids`` are processes of ours (the agent, its workers), which stay.
    """
    found: list[Reason] = []
    for _ in range(_BIRTHS_MAX):
        try:
            if reason := standing.not_a_candidate(pid, own_pids):
                return [reason]
            family = [relative.pid for relative in lineage.family(pid)]
        except TaskVanished:
            return [standing.no_such_process(pid)]
        found = _of_process(pid, family, own_pids)
        for member in family[1:]:
            found += of_member(member, family, own_pids)
        # A child that was just born may share for a moment what its parent has.
        if len(family) == 1 or not any(r.kind in _PASSING for r in found):
            break
    return list(dict.fromkeys(found))


def of_member(
    pid: Pid, family: Collection[Pid], own_pids: Collection[Pid] = ()
) -> list[Reason]:
    """What one of a family has against it; nothing if it has ended."""
    found = _of_process(pid, family, own_pids)
    return [] if found == [standing.no_such_process(pid)] else found


def _of_process(
    pid: Pid, family: Collection[Pid], own_pids: Collection[Pid]
) -> list[Reason]:
    try:
        if reason := standing.not_a_candidate(pid, own_pids):
            return [reason]
        subject = Subject.of(pid)
        found = [
            *standing.reasons(subject, family),
            *confinement.reasons(subject),
            *memory.reasons(subject),
            *sharing.reasons(subject, family),
            *strangers.reasons(pid, subject.views, family),
            *_kinds(pid),
        ]
    except TaskVanished:
        return [standing.no_such_process(pid)]
    except KernelError as error:
        # kcmp(2), say, which a kernel may have been built without.
        return [Reason("kernel", f"The kernel cannot be asked: {error}.", pid)]
    except PermissionError as error:
        return [
            Reason(
                "rights",
                f"pid {pid} may not be looked at by this user ({error.filename}: "
                f"{error.strerror}). Run as root, or as the owner of the process.",
                pid,
            )
        ]
    return list(dict.fromkeys(found))


def notes(pid: Pid) -> list[str]:
    """What will be different afterwards, in sentences; nothing that stops the move.

    Raises:
        TaskVanished: there is no such process.
    """
    stat = procfs.stat(pid)
    found: list[str] = []
    if stat.parent > 1:
        try:
            parent = procfs.stat(stat.parent).name
        except TaskVanished:
            return found
        if parent not in _SHELLS_AND_INITS:
            found.append(
                f"The parent of pid {pid}, {printable(parent)} (pid {stat.parent}), "
                "will see it end. If that is a supervisor, it may start another one."
            )
    if any("lo" in vma.flags for vma in procfs.read_smaps(pid).vmas):
        found.append(
            f"pid {pid} has locked memory (mlock(2)): it is locked again over there "
            "if its limits allow."
        )
    return found


def _kinds(pid: Pid) -> Iterator[Reason]:
    """What the kinds of a process and of its tasks have against it."""
    for process_kind in table.process_kinds():
        for message in _asked(process_kind.refuse, pid):
            yield Reason(process_kind.KIND.name, message, pid)
    for task_kind in table.task_kinds():
        for message in _asked(task_kind.refuse, pid):
            yield Reason(task_kind.KIND.name, message, pid)


def _asked(refuse: Callable[[Pid], list[str]], pid: Pid) -> list[str]:
    """What a kind says, asked again where only a thread has ended meanwhile.

    Raises:
        TaskVanished: the process has ended.
    """
    for _ in range(_ASK_AGAIN_MAX):
        try:
            return refuse(pid)
        except TaskVanished:
            if procfs.stat(pid).state in "ZX":
                raise
    return refuse(pid)
