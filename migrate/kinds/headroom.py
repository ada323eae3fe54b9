"""getrlimit(2), the early half: limits raised so that what is restored fits.

read from   prlimit64(0, …), made by the process itself
rebuilt by  prlimit64(0, …): soft limits that must be higher than they are

The skeleton begins with the limits of the agent. Descriptors above its
RLIMIT_NOFILE or memory above its RLIMIT_MEMLOCK need more before they are there;
`limits` sets the true ones at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import resource_limits
from migrate.kernel.asking import asked
from migrate.kernel.tasks import Limit
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid


@dataclass(frozen=True, slots=True)
class Headroom:
    """What travels: the soft limit of each RLIMIT_ number."""

    soft: tuple[int, ...]


KIND = Kind("headroom", 1, Scope.PROCESS, Headroom, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no limit that cannot be carried."""
    return []


def dump(source: Source) -> Headroom:
    """Ask the process: prlimit(2) from outside may need a right."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[Headroom]:
    """Ask together with others."""
    limits = resource_limits.ask(form, batch)
    return lambda results: Headroom(tuple(limit.soft for limit in limits(results)))


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
