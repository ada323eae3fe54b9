"""Whether a tree of processes may come in, or leave: the rules, asked about real ones.

At the destination what the peer declares is judged, before anything is built of it: the
skeleton is then made of exactly those ids, and later records cannot change them (see
``kinds.credentials``). A user is the same on both hosts if number and name are.
"""

import grp
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from errno import EBUSY
from pathlib import Path
from typing import Final

from migrate.audit import Audit
from migrate.errors import Reason
from migrate.image import Process
from migrate.kernel import cgroups, lineage, procfs
from migrate.limits import Limits
from migrate.patience import patient
from migrate.peers import Known
from migrate.policy import Decision, Member, decide
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid
from transport import messages as m

_USER: Final = "user."  # feature of the source: the name of a uid there
_LOOK_BYTES: Final = 64 << 20  # so much may come between two looks at what is there


class TooMuch(ValueError):
    """It has more memory than was allowed; a sentence."""


class Admission:
    """What one visitor may do, and who hears of it."""

    def __init__(
        self, visitor: Known, address: str, limits: Limits, audit: Audit
    ) -> None:
        self._visitor = visitor
        self._address = address
        self._limits = limits
        self._audit = audit
        self._named: dict[str, str] = {}
        self._transaction = b""
        self._let_in: Decision | None = None

    def about(self, options: m.Options, transaction: bytes) -> None:
        """What it is that the visitor brings."""
        self._named = {
            feature.name.removeprefix(_USER): feature.value
            for feature in options.features
            if feature.name.startswith(_USER)
        }
        self._transaction = transaction

    def judge(self, processes: Sequence[Process]) -> tuple[Reason, ...]:
        """Why the tree may not come in; empty if it may. It stands in the audit log
        before this returns.

        Raises:
            OSError: it cannot be written down, so nobody comes in.
        """
        decision = self._decide(processes)
        if self._let_in is None and decision.allowed:
            self._let_in = decision
        for process in processes[: self._limits.processes_max]:
            self._audit.write(
                "arrival",
                decision,
                peer=self._visitor.peer.fingerprint,
                name=self._visitor.name,
                address=self._address,
                transaction=self._transaction.hex(),
                uid=process.uids[0],
                user=self._named.get(str(process.uids[0])),
                pid=process.pid,
                exe=os.fsdecode(process.executable),
            )
        if decision.allowed:
            return ()
        return (
            Reason("policy", f"The policy here does not let it in: {decision.why}"),
        )

    def require(self, process: Process) -> None:
        """One that joins a tree that was let in.

        Raises:
            TooMuch: it may not.
        """
        for reason in self.judge([process]):
            raise TooMuch(reason.message)

    @property
    def greeting_s(self) -> float:
        """How long the visitor may take for a word, until he has made his offer."""
        return patient(self._limits.greeting_s)

    def memory_bytes_max(self) -> int:
        """How much the tree that was let in may have here."""
        limits = []
        if self._limits.memory_max is not None:
            limits.append(self._limits.memory_bytes_max())
        by_rule = self._let_in.memory_bytes_max() if self._let_in else None
        if by_rule is not None:
            limits.append(by_rule)
        return min(limits, default=_available())

    def home(self) -> str:
        """The cgroup in which it is to live: the slice of the rule, or our own.

        Raises:
            OSError: it cannot live there; a sentence.
        """
        assert self._let_in is not None
        wanted = self._let_in.rules[0].slice
        if wanted is None:
            return cgroups.current(Pid(os.getpid()))
        if not cgroups.takes_processes(wanted):
            raise OSError(
                EBUSY,
                f"The policy puts it into the slice {wanted}, which is not there or "
                "has controllers enabled for cgroups below it, so that it takes no "
                "process itself.",
            )
        return wanted

    def _decide(self, processes: Sequence[Process]) -> Decision:
        most = self._limits.processes_max
        if len(processes) > most:
            why = f"It has {len(processes)} processes; {most} are taken here."
            return Decision(False, why)
        threads = sum(len(process.tasks) for process in processes)
        most = self._limits.threads_max
        if threads > most:
            why = f"It has {threads} threads; {most} are taken here."
            return Decision(False, why)
        for process in processes:
            if other := _other_people(process, self._named):
                return Decision(False, other)
        peer = self._visitor.peer
        members = [_member(process) for process in processes]
        decision = decide(members, 0, allow=peer.allow_in, deny=peer.deny_in)
        if decision.allowed and not decision.rules[0].any_groups:
            for process in processes:
                if stray := _foreign_groups(process):
                    return Decision(False, stray)
        return decision


class Allowance:
    """How much memory may come, looked at while it comes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._unseen_bytes = 0
        self._look_bytes = min(_LOOK_BYTES, limit_bytes)

    def spend(
        self,
        count_bytes: int,
        pids: Sequence[Pid],
        shared_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """So much has come for one of ``pids``, or for what they share.

        That has ``shared_bytes``; what of it is mapped and was touched counts twice.

        Raises:
            TooMuch: together they have more than was allowed.
        """
        self._unseen_bytes += count_bytes
        if self._unseen_bytes < self._look_bytes:
            return
        self._unseen_bytes = 0
        there = sum(_resident(pid) for pid in pids) + shared_bytes()
        if there > self._limit_bytes:
            raise TooMuch(
                f"It has {there} bytes of memory; {self._limit_bytes} are allowed."
            )
        self._look_bytes = min(_LOOK_BYTES, self._limit_bytes - there + PAGE_BYTES)


def require_departure(peer: Known, pids: Sequence[int], audit: Audit) -> Reason | None:
    """Why the trees of ``pids`` may not go to ``peer``; None if they may."""
    family = {pid: who for root in pids for pid, who in _family(Pid(root))}
    decision = decide(list(family.values()), 0, allow=peer.peer.allow_out)
    for pid, member in family.items():
        audit.write(
            "departure",
            decision,
            peer=peer.peer.fingerprint,
            name=peer.name,
            uid=max(member.uids),
            user=member.user,
            pid=pid,
            exe=member.executable,
        )
    if decision.allowed:
        return None
    return Reason(
        "policy",
        f"The policy here does not let it go to {peer.name}: {decision.why} See "
        "allow_out in peers.d.",
    )


def names_of(processes: Sequence[Process]) -> tuple[m.Feature, ...]:
    """What the users of a tree are called here, for the destination to compare."""
    uids = sorted({uid for process in processes for uid in process.uids})
    return tuple(
        m.Feature(f"{_USER}{uid}", name)
        for uid in uids
        if (name := _name(uid)) is not None
    )


def _family(root: Pid) -> Iterator[tuple[Pid, Member]]:
    """All that live now; who joins later is asked about by the destination."""
    for relative in lineage.family(root):
        try:
            yield relative.pid, _running(relative.pid)
        except TaskVanished:
            if relative.pid == root:
                raise


def _running(pid: Pid) -> Member:
    ids = procfs.status(pid).uids
    uids = frozenset({ids.real, ids.effective, ids.saved})
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        executable = ""  # a zombie has none
    return Member(uids, _name(ids.real), executable)


def _member(process: Process) -> Member:
    return Member(
        frozenset(process.uids),
        _name(process.uids[0]),
        os.fsdecode(process.executable),
    )


def _other_people(process: Process, named: dict[str, str]) -> str:
    """Whether a number means somebody else here; a sentence."""
    for uid in sorted(set(process.uids)):
        here, there = _name(uid), named.get(str(uid))
        if uid and here != there:
            return (
                f"uid {uid} is {there or 'nobody with a name'} there and "
                f"{here or 'nobody with a name'} here."
            )
    return ""


def _foreign_groups(process: Process) -> str:
    """Groups that a login would not give; a sentence."""
    uid = process.uids[0]
    if uid == 0:
        return ""
    wanted = {*process.gids, *process.groups}
    name = _name(uid)
    own = set() if name is None else {*os.getgrouplist(name, pwd.getpwuid(uid).pw_gid)}
    if stray := sorted(wanted - own):
        return (
            f"{name or uid} is not in the groups {', '.join(map(_group, stray))} here. "
            "If that is meant: any_groups = true in the rule."
        )
    return ""


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except (KeyError, OverflowError):
        return str(gid)


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def _resident(pid: Pid) -> int:
    try:
        pages = int(procfs.read(pid, "statm").split()[1])
    except KernelError:
        return 0  # gone: its memory, too
    return pages * PAGE_BYTES


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")
