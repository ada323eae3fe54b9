"""One class for each outcome of a move: its exit code and its name in the report.

A message says what was attempted and what came back; the class adds where the
process is now, and whoever raises it adds the way out:

    The connection to 10.0.0.2:7077 was lost in round 3: ECONNRESET.
    The process runs on here, unharmed. Start the move again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Outcome(Enum):
    """How a move ended. The value is its name in the report."""

    ARRIVED = "arrived"
    CAN_GO = "can go"  # a dry run that found nothing in the way
    OUR_BUG = "our bug"
    WRONG_ARGUMENTS = "wrong arguments"
    REFUSED = "refused"
    NOT_CONNECTED = "could not connect or authenticate"
    REFUSED_BY_DESTINATION = "refused by the destination"
    ROLLED_BACK = "failed on the way and rolled back"
    IN_DOUBT = "in doubt"
    TARGET_ENDED = "the process ended by itself meanwhile"

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return _EXIT_CODES[self]


_EXIT_CODES: Final = {
    Outcome.ARRIVED: 0,
    Outcome.CAN_GO: 0,
    Outcome.OUR_BUG: 1,
    Outcome.WRONG_ARGUMENTS: 2,
    Outcome.REFUSED: 3,
    Outcome.NOT_CONNECTED: 4,
    Outcome.REFUSED_BY_DESTINATION: 5,
    Outcome.ROLLED_BACK: 6,
    Outcome.IN_DOUBT: 7,
    Outcome.TARGET_ENDED: 8,
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a process cannot go, or did not arrive."""

    kind: str  # what is in the way: a kind's name, "thread", "connection", …
    message: str  # a sentence, with the way out
    pid: int | None = None
    fd: int | None = None


class Account(Protocol):
    """What a failed move can still tell: a ``migrate.report.Report``, to errors."""

    @property
    def outcome(self) -> Outcome:
        """How the move ended."""


class MigrateError(Exception):
    """A move that ended in one of the outcomes that are not our bug."""

    outcome: ClassVar[Outcome]
    whereabouts: ClassVar[str]  # a sentence: where the process is now

    def __init__(
        self,
        message: str,
        *,
        reasons: Sequence[Reason] = (),
        way_out: str = "",
        report: Account | None = None,
    ) -> None:
        self.message = message
        self.reasons = tuple(reasons)
        self.way_out = way_out
        self.report = report  # how far it came, where that is known
        super().__init__(message)

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return self.outcome.exit_code

    def __str__(self) -> str:
        return " ".join(filter(None, (self.message, self.whereabouts, self.way_out)))


class Refused(MigrateError):
    """This process cannot go; ``reasons`` names everything that is in the way."""

    outcome = Outcome.REFUSED
    whereabouts = "Nothing was touched."


class NotConnected(MigrateError):
    """The destination could not be reached, or is not who it should be."""

    outcome = Outcome.NOT_CONNECTED
    whereabouts = "The process was not touched."


class RefusedByDestination(MigrateError):
    """The destination will not or cannot have it."""

    outcome = Outcome.REFUSED_BY_DESTINATION
    whereabouts = "The process runs on here, unharmed."


class RolledBack(MigrateError):
    """It failed before the hand-over, and was undone."""

    outcome = Outcome.ROLLED_BACK
    whereabouts = "The process runs on here, unharmed."


class RolledBackWithoutLocks(RolledBack):
    """It was undone, but for file locks, which somebody else has taken meanwhile."""

    whereabouts = "The process runs on here, without those locks."


class InDoubt(MigrateError):
    """The hand-over was sent and not answered: nobody can know who owns it."""

    outcome = Outcome.IN_DOUBT
    whereabouts = (
        "The process is frozen here, and must not be thawed before it is known "
        "whether it runs at the destination."
    )


class TargetEnded(MigrateError):
    """The process ended by itself, as it would have without us."""

    outcome = Outcome.TARGET_ENDED
    whereabouts = "It is gone; nothing was left at the destination."


def printable(text: str) -> str:
    """``text`` with everything a terminal might obey, or hide, written out.

    For whatever a target or a peer had a hand in: names, paths, messages. Bytes
    that were no UTF-8 (``surrogateescape``) come out as the bytes they were.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _written_out(c) for c in text)


def _written_out(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape (PEP 383): byte 0x80 … 0xff
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
