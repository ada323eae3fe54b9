"""credentials(7): ids, capabilities, securebits, no_new_privs.

read from   getresuid(2), getgroups(2), capget(2), prctl(2) and the like, made by the
            thread itself
rebuilt by  prctl(2) and capset(2), made by the thread itself

User and group ids are not set here: the skeleton was started as the owner, and here
it is checked that this is so. Capabilities are only ever given up. What the process
may not have at the destination it does not get: a bounding set that is smaller there
stays so, and a process that uses what it may not have there is refused.

The last of the late kinds: restoring the others may need what is given up here.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, Final

from migrate.kernel import procfs
from migrate.kernel.asking import Unsaid, asked, must
from migrate.kernel.tasks import Capabilities, Ids
from migrate.kernel.telling import none_failed, told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_CAPBSET_DROP: Final = 24
_PR_GET_SECUREBITS: Final = 27
_PR_SET_SECUREBITS: Final = 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_AMBIENT_RAISE: Final = 2
_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_HEADER: Final = struct.Struct("<Ii")
_SETS: Final = struct.Struct("<6I")  # effective, permitted, inheritable; low, then high
_LOW: Final = 0xFFFF_FFFF
_CAPABILITIES: Final = range(64)
_LAST: Final = Path("/proc/sys/kernel/cap_last_cap")
_PR_CAPBSET_READ: Final = 23
_PR_GET_NO_NEW_PRIVS: Final = 39
_AMBIENT_IS_SET: Final = 1
_SAME: Final = 0xFFFF_FFFF  # of setfsuid(2): change nothing, tell what it is
_GROUPS_MAX: Final = 256  # who is in more of them has /proc read
_IDS: Final = struct.Struct("<3I")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What travels."""

    uids: Ids
    gids: Ids
    groups: tuple[int, ...]
    capabilities: Capabilities
    securebits: int
    no_new_privs: bool


KIND = Kind(
    "credentials",
    1,
    Scope.TASK,
    Credentials,
    after=(
        "affinity",
        "alternate_stack",
        "comm",
        "ioprio",
        "pending_task_signals",
        "personality",
        "robust_list",
        "rseq",
        "scheduling",
        "task_flags",
        "tid_address",
        "timer_slack",
    ),
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """Ids that differ between threads, or that no exec could give."""
    reasons = []
    leader = procfs.status(pid)
    for whose, ids in (("user", leader.uids), ("group", leader.gids)):
        if ids.filesystem != ids.effective:
            reasons.append(
                f"pid {pid} has a file system {whose} id of its own "
                f"({ids.filesystem}, not {ids.effective}): that cannot be carried."
            )
    for tid in procfs.threads(pid):
        own = procfs.status(pid, tid)
        mine = own.uids, own.gids, own.groups
        if mine != (leader.uids, leader.gids, leader.groups):
            reasons.append(
                f"thread {tid} of pid {pid} has other user or group ids than its "
                "process: that cannot be carried."
            )
    return reasons


def dump(source: Source, tid: Tid) -> Credentials:
    """Ask the thread."""
    remote = source.remote.on(tid)
    try:
        return asked(remote, ask)
    except Unsaid:
        groups = procfs.status(source.pid, tid).groups
        return asked(remote, lambda form, batch: _ask(form, batch, groups))


def ask(form: Form, batch: Batch) -> Reader[Credentials]:
    """Ask together with others."""
    return _ask(form, batch, None)


def _ask(
    form: Form, batch: Batch, known_groups: tuple[int, ...] | None
) -> Reader[Credentials]:
    """``known_groups``: those of a thread that has more than there is room for."""
    uids, gids = form.space(_IDS.size), form.space(_IDS.size)
    groups, sets = form.space(4 * _GROUPS_MAX), form.space(_SETS.size)
    first = batch.add("getresuid", uids, uids + 4, uids + 8)
    batch.add("getresgid", gids, gids + 4, gids + 8)
    batch.add("capget", _HEADER.pack(_CAPABILITY_VERSION_3, 0), sets)
    batch.add("prctl", _PR_GET_SECUREBITS, 0, 0, 0, 0)
    batch.add("prctl", _PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
    batch.add("setfsuid", _SAME)
    batch.add("setfsgid", _SAME)
    in_groups = batch.add("getgroups", _GROUPS_MAX, groups)
    bounding = _ask_for_each(batch, _PR_CAPBSET_READ)
    ambient = _ask_for_each(batch, _PR_CAP_AMBIENT, _AMBIENT_IS_SET)

    def read(results: Sequence[int]) -> Credentials:
        for at in range(first, in_groups):
            must(form, "capget or getresuid", results[at])
        *_, securebits, no_new_privs, fsuid, fsgid = results[first:in_groups]
        own_groups = known_groups
        if own_groups is None:
            count = results[in_groups]
            if count == -EINVAL:
                raise Unsaid
            own_groups = struct.unpack(f"<{count}I", form.read(groups, 4 * count))
        effective, permitted, inheritable, *high = _SETS.unpack(
            form.read(sets, _SETS.size)
        )
        return Credentials(
            uids=_ids(form.read(uids, _IDS.size), fsuid),
            gids=_ids(form.read(gids, _IDS.size), fsgid),
            groups=own_groups,
            capabilities=Capabilities(
                inheritable=inheritable | high[2] << 32,
                permitted=permitted | high[1] << 32,
                effective=effective | high[0] << 32,
                bounding=_mask(results, bounding),
                ambient=_mask(results, ambient),
            ),
            securebits=securebits,
            no_new_privs=no_new_privs != 0,
        )

    return read


def _ids(three: bytes, filesystem: int) -> Ids:
    real, effective, saved = _IDS.unpack(three)
    return Ids(real, effective, saved, filesystem)


def _ask_for_each(batch: Batch, *what: int) -> range:
    """Ask for each capability that this kernel knows."""
    first = len(batch)
    for number in range(_last_capability() + 1):
        batch.add("prctl", *what, number, 0, 0)
    return range(first, len(batch))


@functools.cache
def _last_capability() -> int:
    """The last one that there is; all of a mask where the kernel does not say."""
    try:
        return int(_LAST.read_text(encoding="ascii"))
    except OSError:
        return _CAPABILITIES[-1]


def _mask(results: Sequence[int], places: range) -> int:
    return sum(1 << bit for bit, at in enumerate(places) if results[at] > 0)


def restore(record: Credentials, target: Target, tid: Tid) -> None:
    """Give up what the thread has and the record has not.

    Raises:
        CannotCarry: the ids are others, or a capability is missing.
    """
    remote = target.remote.on(tid)
    there = asked(remote, ask)
    told(remote, lambda remote, batch: tell(record, there, remote, batch))


def tell(
    record: Credentials, there: Credentials, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    _require_same_ids(record, there, remote.pid)
    wanted, have = record.capabilities, there.capabilities
    _require_capabilities(wanted, have, remote.pid)
    first = len(batch)
    # The order matters: everything before the last capset(2) may need CAP_SETPCAP,
    # and an ambient capability must be permitted and inheritable (capabilities(7)).
    for number in _bits(have.bounding & ~wanted.bounding):
        batch.add("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    if wanted != have:
        inheritable = wanted.inheritable & (have.inheritable | have.permitted)
        _add_capset(batch, have.effective, have.permitted, inheritable)
    if wanted.ambient != have.ambient:
        batch.add("prctl", _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
        for number in _bits(wanted.ambient):
            batch.add("prctl", _PR_CAP_AMBIENT, _AMBIENT_RAISE, number, 0, 0)
    if record.securebits != there.securebits:
        batch.add("prctl", _PR_SET_SECUREBITS, record.securebits, 0, 0, 0)
    if wanted != have:
        inheritable = wanted.inheritable & (have.inheritable | have.permitted)
        _add_capset(batch, wanted.effective, wanted.permitted, inheritable)
    if record.no_new_privs and not there.no_new_privs:
        batch.add("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return none_failed(remote, "prctl or capset", first, len(batch))


def _add_capset(batch: Batch, effective: int, permitted: int, inheritable: int) -> None:
    sets = effective, permitted, inheritable
    data = _SETS.pack(*(s & _LOW for s in sets), *(s >> 32 for s in sets))
    batch.add("capset", _HEADER.pack(_CAPABILITY_VERSION_3, 0), data)


def _require_same_ids(record: Credentials, there: Credentials, pid: Pid) -> None:
    wanted = record.uids, record.gids, record.groups
    if wanted != (there.uids, there.gids, there.groups):
        raise CannotCarry(
            KIND.name,
            f"The process has uids {record.uids}, gids {record.gids} and groups "
            f"{record.groups}; the one that was started for it has {there.uids}, "
            f"{there.gids} and {there.groups}.",
            pid=pid,
        )


def _require_capabilities(wanted: Capabilities, have: Capabilities, pid: Pid) -> None:
    missing = (wanted.permitted | wanted.effective | wanted.ambient) & ~have.permitted
    if missing:
        numbers = ", ".join(map(str, _bits(missing)))
        raise CannotCarry(
            KIND.name,
            f"The process has capabilities that it may not have at the destination "
            f"(numbers {numbers} in linux/capability.h). Give them to the agent "
            "there, or take them from the process.",
            pid=pid,
        )


def _bits(mask: int) -> list[int]:
    return [number for number in _CAPABILITIES if mask >> number & 1]
