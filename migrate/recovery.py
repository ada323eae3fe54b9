"""What a dead agent or command left: what its journal says is done, as often as needed.

A journal that nobody has locked has lost its keeper. The rules say what is to be done
then (``ownership``, ``recovered``); here it is done, to a process that is found again
by the cgroup that its journal names. All of it may be interrupted, and done again.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from migrate import lent_locks
from migrate.failpoints import reach
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
    Write,
    perform,
)
from migrate.patience import patient
from migrate.state_directory import Kept, Side, StateDirectory, boot, pid_namespace
from transport.errors import TransportError

ASK_S: Final = patient(10.0)  # for each word of the answer: a worker has to start there
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
    lost: tuple[str, ...] = ()  # sentences: what could not be given back to it


class _Taken:
    """A journal without a keeper that is ours to go on with, and the rules for it."""

    def __init__(self, state: StateDirectory, kept: Kept, record: Record) -> None:
        self._state = state
        self._kept = kept
        self._record = record
        self.owner = _owner(record)
        self.lost: tuple[str, ...] = ()

    @property
    def source(self) -> SourceOwner:
        """The owner of a departure."""
        assert isinstance(self.owner, SourceOwner)
        return self.owner

    @property
    def destination(self) -> DestinationOwner:
        """The owner of an arrival."""
        assert isinstance(self.owner, DestinationOwner)
        return self.owner

    def perform(self, actions: Sequence[Action]) -> None:
        """Do to the process, which is found by its cgroup, what the rules say.

        Raises:
            OSError: it could not be done; do it again later.
        """
        perform(self.owner, actions, self)

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
                reach(f"recovery.{state.name.lower()}.journalled")
            case Say():
                return  # whoever asks is told by the journal
            case Deed.THAW:
                self._give_back()
                self._end_leaf(kill=False)
                reach("recovery.thawed")
            case Deed.KILL:
                self._end_leaf(kill=True)
                reach("recovery.killed")
            case Deed.FORGET:
                self._kept.remove()
            case Deed.FREEZE:
                raise AssertionError("nobody freezes what he has found")

    def _give_back(self) -> None:
        """What it gave up in the freeze, before it runs."""
        record, lent = self._record, self._kept.entrusted()
        if lent is None or record.boot != boot():
            return
        self.lost = lent_locks.take_back(os.fsdecode(record.leaf), lent)
        for sentence in self.lost:
            self._state.audit(f"{record.name}: pid {record.pid} runs on: {sentence}")
        self._kept.given_back()
        reach("recovery.given_back")

    def _end_leaf(self, *, kill: bool) -> None:
        try:
            leaf = Leaf(os.fsdecode(self._record.leaf))
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


@contextmanager
def _taking(state: StateDirectory, side: Side, name: str) -> Iterator[_Taken | None]:
    """The journal of a transaction while it is ours; None where it is another's.

    Raises:
        FileNotFoundError: there is none, or no longer.
    """
    kept = state.take(side, name)
    if kept is None:
        yield None
        return
    with kept:
        record = kept.journal.record
        # One that cannot be read stays: whatever it holds stays frozen.
        if record is None or not _is_ours(record):
            yield None
        else:
            yield _Taken(state, kept, record)


def settle_all(state: StateDirectory) -> Iterator[Settled]:
    """Finish whatever has lost its keeper, without asking anybody."""
    for side in Side:
        for name in state.names(side):
            if (settled := settle(state, side, name)) is not None:
                yield settled


def settle(state: StateDirectory, side: Side, name: str) -> Settled | None:
    """Finish one, if it has lost its keeper; None if nothing has changed."""
    try:
        with _taking(state, side, name) as taken:
            if taken is None:
                return None
            before = taken.owner.state
            taken.perform(taken.owner.recovered())
            after = taken.owner.state
            if after is before and not taken.lost:
                return None
            return Settled(side, name, before, after, taken.lost)
    except FileNotFoundError:
        return None


def verdict_on_arrival(state: StateDirectory, name: str) -> Verdict:
    """What we say of a process that was to arrive. Settled first if it can be."""
    try:
        with _taking(state, Side.DESTINATION, name) as taken:
            if taken is None:
                return Verdict.NOT_YET
            taken.perform(taken.destination.recovered())
            return taken.destination.verdict()
    except FileNotFoundError:
        return DestinationOwner(DestinationState.GONE).verdict()


def forget_arrival(state: StateDirectory, name: str) -> None:
    """The source knows how it ended."""
    try:
        with _taking(state, Side.DESTINATION, name) as taken:
            if taken is not None:
                taken.perform(taken.destination.heard_fin())
    except FileNotFoundError:
        return


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


def ask(state: StateDirectory, record: Record, *, timeout_s: float = ASK_S) -> Standing:
    """Ask the destination once about a departure, and do as it says."""
    try:
        inquiry = Inquiry(
            record.peer_host, record.peer_port, record.transaction, timeout_s=timeout_s
        )
    except TransportError:
        return standing(state, record.name)
    with inquiry:
        settled = apply(state, record.name, inquiry.verdict, inquiry.epoch)
        if settled in (Standing.HERE, Standing.THERE) and inquiry.conclude():
            _told(state, record.name, SourceOwner.heard_forgotten)
        return settled


def apply(state: StateDirectory, name: str, verdict: Verdict, epoch: bytes) -> Standing:
    """Do what the destination says of a departure."""
    return _told(state, name, lambda owner: owner.heard(verdict, epoch))


def fence(state: StateDirectory, name: str) -> Standing:
    """The operator swears that the destination will never run it: thaw it here."""
    return _told(state, name, SourceOwner.fenced)


def _told(
    state: StateDirectory,
    name: str,
    hears: Callable[[SourceOwner], Sequence[Action]],
) -> Standing:
    try:
        with _taking(state, Side.SOURCE, name) as taken:
            if taken is not None:
                taken.perform(hears(taken.source))
                return _STANDING[taken.source.state]
    except FileNotFoundError:
        pass
    return standing(state, name)  # somebody was quicker, or is at it


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


def _is_ours(record: Record) -> bool:
    """Whether its process is, or was, in our pid namespace."""
    return record.boot != boot() or record.pid_namespace == pid_namespace()


def _owner(record: Record) -> SourceOwner | DestinationOwner:
    has_copy = record.boot == boot()
    if isinstance(record.state, SourceState):
        return SourceOwner(record.state, record.epoch, has_copy)
    return DestinationOwner(record.state, has_copy)
