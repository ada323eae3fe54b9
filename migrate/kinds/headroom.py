"""getrlimit(2), the early half: limits raised so that what is restored fits.

read from   /proc/PID/limits
rebuilt by  prlimit64(0, …): soft limits that must be higher than they are

The skeleton begins with the limits of the agent. Descriptors above its
RLIMIT_NOFILE or memory above its RLIMIT_MEMLOCK need more before they are there;
`limits` sets the true ones at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import procfs, resource_limits
from migrate.kernel.tasks import Limit
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid


@dataclass(frozen=True, slots=True)
class Headroom:
    """What travels: the soft limit of each RLIMIT_ number."""

    soft: tuple[int, ...]


KIND = Kind("headroom", 1, Scope.PROCESS, Headroom)


def refuse(pid: Pid) -> list[str]:
    """There is no limit that cannot be carried."""
    return []


def dump(source: Source) -> Headroom:
    """Read /proc: prlimit(2) from outside may need a right."""
    limits = procfs.limits(source.pid)
    return Headroom(tuple(limits[n].soft for n in range(resource_limits.COUNT)))


def restore(record: Headroom, target: Target) -> None:
    """Raise what is lower, as far as the hard limit goes or may be raised."""
    if len(record.soft) != resource_limits.COUNT:
        raise CannotCarry(KIND.name, "The peer's limits are not sixteen.")
    there = resource_limits.read(target.remote)
    wanted = {
        number: Limit(soft, max(soft, there[number].hard))
        for number, soft in enumerate(record.soft)
        if soft > there[number].soft
    }
    denied = resource_limits.write(target.remote, wanted)
    resource_limits.write(
        target.remote, {n: Limit(there[n].hard, there[n].hard) for n in denied}
    )
