"""The faults of a hand-over, and at which points: every case of the sweep."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Fault(Enum):
    """What happens at the point."""

    KILL = "kill"
    RAISE = "raise"
    HANG = "hang"
    ERRNO = "EIO"
    CUT = "cut both ways"
    CUT_TO_DESTINATION = "cut towards the destination"
    CUT_TO_SOURCE = "cut towards the source"
    INTERRUPTED = "SIGINT to the command"
    STOPPED = "SIGTERM to the agent"
    TARGET_KILLED = "the process is killed"
    TARGET_FORKS = "the process forks"
    TARGET_EXECUTES = "the process executes"


class Who(Enum):
    """Whose agent, or command, ends at the fault beside the one at the point."""

    ONE = "one side"
    BOTH = "both sides"


CUTS: Final = (Fault.CUT, Fault.CUT_TO_DESTINATION, Fault.CUT_TO_SOURCE)
# Nothing of ours fails: whoever hears of it finishes or gives up in good order.
ORDERLY: Final = (
    Fault.INTERRUPTED,
    Fault.STOPPED,
    Fault.TARGET_KILLED,
    Fault.TARGET_FORKS,
    Fault.TARGET_EXECUTES,
)
SOURCE_POINTS: Final = (
    "source.greeted",
    "source.tracked",
    "source.offered",
    "source.rounds.sent",
    "source.frozen.write",
    "source.frozen.journalled",
    "source.leaf.made",
    "source.frozen",
    "source.state.sent",
    "source.pages.sent",
    "source.ready.heard",
    "source.go.before_journal",
    "source.go.write",
    "source.go.journalled",
    "source.go.said",
    "source.accepted.heard",
    "source.done.write",
    "source.done.journalled",
    "source.killed",
    "source.fin.said",
)
DESTINATION_POINTS: Final = (
    "destination.offered",
    "destination.none.journalled",
    "destination.built",
    "destination.offer.accepted",
    "destination.state.heard",
    "destination.completed",
    "destination.detached",
    "destination.ready.write",
    "destination.ready.journalled",
    "destination.ready.said",
    "destination.go.heard",
    "destination.accepted.write",
    "destination.accepted.journalled",
    "destination.thawed",
    "destination.accepted.said",
    "destination.fin.heard",
    "destination.forgotten",
)
POINTS: Final = (*SOURCE_POINTS, *DESTINATION_POINTS)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the sweep.

    With ``dies_again_at`` the first who recovers is killed at that point, too.
    """

    point: str
    fault: Fault
    who: Who = Who.ONE
    dies_again_at: str = ""
    recovers_at_source: bool = True

    def __str__(self) -> str:
        again = f", and again at {self.dies_again_at}" if self.dies_again_at else ""
        return f"{self.point}: {self.fault.value}, {self.who.value}{again}"

    @property
    def at_source(self) -> bool:
        """Whether it is the command that comes to the point."""
        return self.point in SOURCE_POINTS

    def ends_at(self) -> str | None:
        """The host where it has to count on; None if both are right.

        A cut may come too late to call off anything, or be healed in time; so may a
        word, or what the process does.
        """
        if self.fault in CUTS or self.fault in ORDERLY:
            return "b" if self.point in _AT_THE_DESTINATION else None
        if self.point in _AT_THE_DESTINATION:
            return "b"
        if self.point == "source.go.said":
            return None if self.who is Who.BOTH else "b"
        return "a"


# From these on it was accepted, and nothing takes that back.
_AT_THE_DESTINATION: Final = frozenset(
    {
        *SOURCE_POINTS[SOURCE_POINTS.index("source.accepted.heard") :],
        *DESTINATION_POINTS[
            DESTINATION_POINTS.index("destination.accepted.journalled") :
        ],
    }
)

# Who recovers dies in the middle of it, and the next one recovers.
RECOVERIES: Final = tuple(
    Case(first, Fault.KILL, Who.BOTH, again, recovers_at_source=at_source)
    for first, again, at_source in (
        ("source.state.sent", "recovery.aborted.journalled", True),
        ("source.state.sent", "recovery.given_back", True),
        ("source.state.sent", "recovery.thawed", True),
        ("source.rounds.sent", "recovery.aborted.journalled", True),
        ("source.done.journalled", "recovery.killed", True),
        ("destination.ready.said", "recovery.declined.journalled", False),
        ("destination.ready.said", "recovery.killed", False),
        ("destination.accepted.journalled", "recovery.accepted.journalled", False),
        ("destination.accepted.journalled", "recovery.thawed", False),
    )
)


def every_case() -> Iterator[Case]:
    """Every point with every fault, and recoveries that die."""
    for point in POINTS:
        for fault in Fault:
            yield Case(point, fault)
            if fault in (Fault.KILL, Fault.HANG, Fault.CUT):
                yield Case(point, fault, Who.BOTH)
    yield from RECOVERIES
