"""getrlimit(2): how much of each resource a process may use.

read from   prlimit64(0, …), made by the process itself
rebuilt by  prlimit64(0, …), made by the process itself

They are set last: a limit may be lower than what the process already has, and then
the rest of the restoring would fail. What must be higher meanwhile is `headroom`.
A hard limit that the destination does not let be raised stays as it is there.
RLIMIT_CPU counts from zero again: the processor time used so far is not carried.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import resource_limits
from migrate.kernel.asking import asked
from migrate.kernel.tasks import Limit
from migrate.kernel.telling import told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What travels: one for each RLIMIT_ number."""

    limits: tuple[Limit, ...]


KIND = Kind(
    "limits",
    1,
    Scope.PROCESS,
    Limits,
    after=("interval_timers", "memory_layout", "pending_signals", "posix_timer"),
    late=True,
    in_answers=True,
)


def refuse(pid: Pid) -> list[str]:
    """There is no limit that cannot be carried."""
    return []


def dump(source: Source) -> Limits:
    """Ask the process: prlimit(2) from outside may need a right."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[Limits]:
    """Ask together with others."""
    limits = resource_limits.ask(form, batch)
    return lambda results: Limits(limits(results))


def restore(record: Limits, target: Target) -> None:
    """Set those that differ.

    Raises:
        CannotCarry: a limit that applied at the source is higher than the
            destination allows.
    """
    remote = target.remote
    there = Limits(resource_limits.read(remote))
    told(remote, lambda remote, batch: tell(record, there, remote, batch))


def tell(record: Limits, there: Limits, remote: Remote, batch: Batch) -> Check:
    """Tell together with others."""
    if len(record.limits) != resource_limits.COUNT:
        raise CannotCarry(KIND.name, "The peer's limits are not sixteen.")
    wanted = {
        number: limit
        for number, limit in enumerate(record.limits)
        if limit != there.limits[number]
    }
    read = resource_limits.tell(remote, batch, wanted)

    def check(results: Sequence[int]) -> None:
        if denied := read(results):
            _set_lower({n: wanted[n] for n in denied}, there, remote)

    return check


def _set_lower(denied: dict[int, Limit], there: Limits, remote: Remote) -> None:
    """Set only the soft limits of those whose hard limit could not be raised."""
    lower = {n: Limit(limit.soft, there.limits[n].hard) for n, limit in denied.items()}
    for number, limit in lower.items():
        if limit.soft > limit.hard:
            raise CannotCarry(
                KIND.name,
                f"Its limit {number} (see getrlimit(2)) is {limit.soft}, and at the "
                f"destination it cannot be more than {limit.hard}. Raise the hard "
                "limit of the agent there, or lower that of the process.",
                pid=remote.pid,
            )
    resource_limits.write(remote, lower)
    _log.warning(
        "pid %d: hard limits %s could not be raised to what they were",
        remote.pid,
        ", ".join(map(str, sorted(denied))),
    )
