"""What a dead agent or command left: what its journal says is done, as often as needed.

A journal that nobody has locked has lost its keeper. The rules say what is to be done
then (``ownership``, ``recovered``); here it is done, to a process that is found again
by the cgroup that its journal names. All of it may be interrupted, and done again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from migrate.inquiry import Inquiry
from migrate.journal import Record
from migrate.kernel.cgroups import Leaf
from migrate.ownership import (
    Action,
    Deed,
    DestinationOwner,
    DestinationState,
    Say,
    SourceOwner,
    SourceState,
    Verdict,
    Word,
    Write,
    perform,
)
from migrate.state_directory import Kept, Side, StateDirectory, boot, pid_namespace
from transport.errors import TransportError

ASK_S: Final = 10.0  # for each word of the answer: a worker has to start there
_EMPTY_WITHIN_S: Final = 5.0


class Standing(Enum):
    """Where a process that was to leave is; the value is for people."""

    HERE = "runs here"
    THERE = "runs at the destination"
    IN_DOUBT = "in doubt: frozen here until the destination answers"
    LOST = "it ran at the destination and died with it; frozen here"
    UNDER_WAY = "under way"
    UNKNOWN = "not known here"


@dataclass(frozen=True, slots=True)
class Settled:
    """What was done about one journal."""

    side: Side
    name: str
    before: SourceState | DestinationState
    after: SourceState | DestinationState


class _Hands:
    """Does to a process that was found what the rules say."""

    def __init__(self, kept: Kept, record: Record) -> None:
        self._kept = kept
        self._record = record
        self.said: list[Word] = []

    def do(self, action: Action) -> None:
        """Do one.

        Raises:
            JournalFailed: of a Write.
            OSError: it could not be done; do it again later.
        """
        match action:
            case Write(state, durable):
                record = msgspec.structs.replace(
                    self._record, state_number=state.value, written_s=int(time.time())
                )
                self._kept.journal.write(record, durable=durable)
            case Say(word):
                self.said.append(word)
            case Deed.THAW:
                self._end_leaf(kill=False)
            case Deed.KILL:
                self._end_leaf(kill=True)
            case Deed.FORGET:
                self._kept.remove()
            case Deed.FREEZE:
                raise AssertionError("nobody freezes what he has found")

    def _end_leaf(self, *, kill: bool) -> None:
        try:
            leaf = Leaf(self._record.leaf)
        except FileNotFoundError:
            return  # there never was one, or this has been done already
        try:
            if kill:
                leaf.kill()
                leaf.wait_empty(_EMPTY_WITHIN_S)
            # Moving what is in it to where it was thaws it.
            leaf.dissolve()
        finally:
            leaf.close()


def settle_all(state: StateDirectory) -> Iterator[Settled]:
    """Finish whatever has lost its keeper, without asking anybody."""
    for side in Side:
        for name in state.names(side):
            if (settled := _settle(state, side, name)) is not None:
                yield settled


def _settle(state: StateDirectory, side: Side, name: str) -> Settled | None:
    taken = _take(state, side, name)
    if taken is None:
        return None
    kept, record = taken
    with kept:
        owner = _owner(record)
        before = owner.state
        perform(owner, owner.recovered(), _Hands(kept, record))
        after = owner.state
        return None if after is before else Settled(side, name, before, after)


def verdict_on_arrival(state: StateDirectory, name: str) -> Verdict:
    """What we say of a process that was to arrive. Settled first if it can be."""
    try:
        kept = state.take(Side.DESTINATION, name)
    except FileNotFoundError:
        return DestinationOwner(DestinationState.GONE).verdict()
    if kept is None:
        return Verdict.NOT_YET
    with kept:
        record = kept.journal.record
        if record is None or not _is_ours(record):
            return Verdict.NOT_YET
        owner = _owner(record)
        perform(owner, owner.recovered(), _Hands(kept, record))
        assert isinstance(owner, DestinationOwner)
        return owner.verdict()


def forget_arrival(state: StateDirectory, name: str) -> None:
    """The source knows how it ended."""
    taken = _take(state, Side.DESTINATION, name)
    if taken is None:
        return
    kept, record = taken
    with kept:
        owner = _owner(record)
        assert isinstance(owner, DestinationOwner)
        perform(owner, owner.heard_fin(), _Hands(kept, record))


def in_doubt(state: StateDirectory) -> Iterator[Record]:
    """Departures about which somebody has to be asked: in doubt, or not concluded."""
    for name in state.names(Side.SOURCE):
        try:
            record, is_kept = state.look(Side.SOURCE, name)
        except FileNotFoundError:
            continue
        if record is None or is_kept or not _is_ours(record):
            continue
        if record.state in (SourceState.GO, SourceState.DONE):
            yield record


def ask(state: StateDirectory, record: Record) -> Standing:
    """Ask the destination once about a departure, and do as it says."""
    try:
        inquiry = Inquiry(
            record.peer_host, record.peer_port, record.transaction, timeout_s=ASK_S
        )
    except TransportError:
        return standing(state, record.name)
    with inquiry:
        settled = apply(state, record.name, inquiry.verdict, inquiry.epoch)
        if settled in (Standing.HERE, Standing.THERE) and inquiry.conclude():
            _conclude(state, record.name)
        return settled


def apply(state: StateDirectory, name: str, verdict: Verdict, epoch: bytes) -> Standing:
    """Do what the destination says of a departure."""
    taken = _take(state, Side.SOURCE, name)
    if taken is None:
        return standing(state, name)  # somebody was quicker, or is at it
    kept, record = taken
    with kept:
        owner = _owner(record)
        assert isinstance(owner, SourceOwner)
        perform(owner, owner.heard(verdict, epoch), _Hands(kept, record))
        return _STANDING[owner.state]


def fence(state: StateDirectory, name: str) -> Standing:
    """The operator swears that the destination will never run it: thaw it here."""
    taken = _take(state, Side.SOURCE, name)
    if taken is None:
        return standing(state, name)  # somebody was quicker, or is at it
    kept, record = taken
    with kept:
        owner = _owner(record)
        assert isinstance(owner, SourceOwner)
        perform(owner, owner.fenced(), _Hands(kept, record))
        return _STANDING[owner.state]


def standing(state: StateDirectory, name: str) -> Standing:
    """Where a departure is now, by our journal alone."""
    try:
        now, is_kept = state.look(Side.SOURCE, name)
    except FileNotFoundError:
        return Standing.UNKNOWN
    if is_kept:
        return Standing.UNDER_WAY
    if now is None or not isinstance(now.state, SourceState):
        return Standing.UNKNOWN
    return _STANDING[now.state]


_STANDING: Final = {
    SourceState.PRE: Standing.HERE,
    SourceState.FROZEN: Standing.HERE,
    SourceState.GO: Standing.IN_DOUBT,
    SourceState.ABORTED: Standing.HERE,
    SourceState.DONE: Standing.THERE,
    SourceState.LOST: Standing.LOST,
}


def _conclude(state: StateDirectory, name: str) -> None:
    taken = _take(state, Side.SOURCE, name)
    if taken is None:
        return
    kept, record = taken
    with kept:
        owner = _owner(record)
        assert isinstance(owner, SourceOwner)
        perform(owner, owner.heard_forgotten(), _Hands(kept, record))


def _take(state: StateDirectory, side: Side, name: str) -> tuple[Kept, Record] | None:
    """A journal without a keeper that is ours to go on with."""
    try:
        kept = state.take(side, name)
    except FileNotFoundError:
        return None
    if kept is None:
        return None
    record = kept.journal.record
    # One that cannot be read stays: whatever it holds stays frozen.
    if record is None or not _is_ours(record):
        kept.close()
        return None
    return kept, record


def _is_ours(record: Record) -> bool:
    """Whether its process is, or was, in our pid namespace."""
    return record.boot != boot() or record.pid_namespace == pid_namespace()


def _owner(record: Record) -> SourceOwner | DestinationOwner:
    has_copy = record.boot == boot()
    if isinstance(record.state, SourceState):
        return SourceOwner(record.state, record.epoch, has_copy)
    return DestinationOwner(record.state, has_copy)
