"""Who owns a process that is handed over: both sides, without any input or output.

Each side has a state, which is the last record of its journal, and answers every event
with actions to be done in their order, one after another. The order is the promise:
what a word permits the peer to do is in our journal before the word may leave, and what
our journal permits is done after it is there. Whoever acts may die between any two
actions; ``recovered`` says what is left to do then, and may be asked again and again.

    PRE ─► FROZEN ─► GO ─► DONE         the source: only PRE, FROZEN and ABORTED let
      └───────┴──────┴───► ABORTED      it run; GO ends by the destination's word alone
                     └───► LOST

    NONE ─► READY ─► ACCEPTED ─► GONE   the destination: only ACCEPTED lets it run,
      └───────┴────► DECLINED ─► GONE   and only once that is on the disk

No clock is in here: no time that passes gives a process to anybody. docs/handover.md
has the guarantees, and the one case in which nobody can know.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeAlias


class SourceState(Enum):
    """What the source's journal says. The numbers are on disk; none is used again."""

    PRE = 1  # it runs here, untouched but for looks
    FROZEN = 2  # being frozen, or frozen: the source may still give up alone
    GO = 3  # handed over: never thawed but by the destination's word
    ABORTED = 4  # it runs here, and nobody else was given it
    DONE = 5  # it runs there; this copy is to die
    LOST = 6  # it ran there and died with that host; this copy is for the operator


class DestinationState(Enum):
    """What the destination's journal says."""

    NONE = 11  # being built
    READY = 12  # whole, verified and frozen
    ACCEPTED = 13  # ours
    DECLINED = 14  # it never ran here and never will
    GONE = 15  # settled on both sides, or never heard of


class Verdict(Enum):
    """What the destination says of a process that it was given, or not."""

    ACCEPTED = 1
    DECLINED = 2
    NOT_YET = 3  # not settled: ask again
    DIED = 4  # accepted, and gone with its host


class Word(Enum):
    """What one side says to the other."""

    GO = "go"
    ABORT = "abort"
    FIN = "fin"
    READY = "ready"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    NOT_YET = "not yet"
    DIED = "died"
    FIN_ACK = "fin ack"


class Deed(Enum):
    """What is done to the copy here, and to what we know of it."""

    FREEZE = "freeze"
    THAW = "thaw"  # also where it is thawed already
    KILL = "kill"  # also where it is dead already
    FORGET = "forget"  # the journal goes: only what is settled on both sides


State: TypeAlias = SourceState | DestinationState


@dataclass(frozen=True, slots=True)
class Write:
    """Make ``state`` the last record; ``durable``: and have it on the disk."""

    state: State
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """Say it if there is anybody to say it to; what is lost is asked for again."""

    word: Word


Action: TypeAlias = Write | Say | Deed


class JournalFailed(Exception):
    """A record could not be written, or it is not known whether it is on the disk."""


class Hands(Protocol):
    """Somebody who does the actions of one side."""

    def do(self, action: Action) -> None:
        """Do one.

        Raises:
            JournalFailed: for a Write; what it may have left behind is unknown.
        """


class Owner(Protocol):
    """One side of a hand-over."""

    def wrote(self, action: Write) -> None:
        """The record is there."""

    def failed(self, action: Write) -> Sequence[Action]:
        """It may be there or not: what to do instead of all that was still to do."""


def perform(owner: Owner, actions: Sequence[Action], hands: Hands) -> None:
    """Do ``actions`` in their order; where the journal fails, what remains safe."""
    left = deque(actions)
    while left:
        step(owner, left, hands)


def step(owner: Owner, left: deque[Action], hands: Hands) -> None:
    """Do the first of what is ``left``."""
    action = left.popleft()
    try:
        hands.do(action)
    except JournalFailed:
        assert isinstance(action, Write)
        left.clear()
        left.extend(owner.failed(action))
        return
    if isinstance(action, Write):
        owner.wrote(action)


_LETS_RUN: Final = frozenset({SourceState.PRE, SourceState.FROZEN})


@dataclass(slots=True)
class SourceOwner:
    """The source's side of one transaction."""

    state: SourceState = SourceState.PRE
    epoch: bytes = b""  # of the destination's journal, which Ready told
    has_copy: bool = True  # False: this host was booted anew, and it is gone

    def freeze(self) -> Sequence[Action]:
        """It is to stand still."""
        assert self.state is SourceState.PRE
        return (Write(SourceState.FROZEN), Deed.FREEZE)

    def ready(self, epoch: bytes) -> Sequence[Action]:
        """The destination is: hand it over."""
        if self.state is not SourceState.FROZEN:
            return ()  # said again, or too late
        self.epoch = epoch
        # Not synced: if the page cache is lost, so is the copy that it speaks of.
        return (Write(SourceState.GO), Say(Word.GO))

    def give_up(self) -> Sequence[Action]:
        """Let it run on here, if that is ours to say."""
        if self.state not in _LETS_RUN:
            return ()
        return (Write(SourceState.ABORTED), Deed.THAW, Say(Word.ABORT), Deed.FORGET)

    def heard(self, verdict: Verdict, epoch: bytes) -> Sequence[Action]:
        """The destination's word. That of another journal is not believed.

        A destination that has lost its journal knows of nothing, and would say so.
        """
        if self.state in _LETS_RUN:
            return self.give_up() if verdict is Verdict.DECLINED else ()
        if self.state is SourceState.DONE:
            return self.recovered()
        if self.state is not SourceState.GO or epoch != self.epoch:
            return ()
        match verdict:
            case Verdict.ACCEPTED:
                return (Write(SourceState.DONE), Deed.KILL, Say(Word.FIN))
            case Verdict.DECLINED:
                return (Write(SourceState.ABORTED), *self._let_run())
            case Verdict.DIED:
                return (Write(SourceState.LOST),)
            case Verdict.NOT_YET:
                return ()

    def heard_forgotten(self) -> Sequence[Action]:
        """The destination has forgotten it: FIN_ACK."""
        return (Deed.FORGET,) if self.state is SourceState.DONE else ()

    def fenced(self) -> Sequence[Action]:
        """The operator swears that the destination never runs it, or never again."""
        if self.state not in (SourceState.GO, SourceState.LOST):
            return ()
        return (Write(SourceState.ABORTED), *self._let_run())

    def recovered(self) -> Sequence[Action]:
        """Go on where whoever held this before us left off."""
        match self.state:
            case SourceState.PRE | SourceState.FROZEN:
                return self.give_up()
            case SourceState.ABORTED:
                return self._let_run()
            case SourceState.DONE:
                return (Deed.KILL, Say(Word.FIN))
            case SourceState.GO | SourceState.LOST:
                return ()

    @property
    def is_in_doubt(self) -> bool:
        """Whether only the destination can say where it lives."""
        return self.state is SourceState.GO

    def wrote(self, action: Write) -> None:
        """The record is there, and rules."""
        assert isinstance(action.state, SourceState)
        self.state = action.state

    def failed(self, action: Write) -> Sequence[Action]:
        """What is safe when the record may be there or not."""
        match action.state:
            case SourceState.GO:
                # It has not left, and never will.
                return self.give_up()
            case SourceState.ABORTED if self.state in _LETS_RUN:
                # Whatever a successor reads (PRE, FROZEN, a GO that never left, or
                # this), nobody else was given it.
                self.state = SourceState.ABORTED
                return (Deed.THAW, Say(Word.ABORT))
            case SourceState.ABORTED:
                # A successor may read GO, ask, and hear the same again.
                self.state = SourceState.ABORTED
                return (Deed.THAW,)
            case SourceState.DONE:
                # Its word stands, and is there to be asked for again.
                self.state = SourceState.DONE
                return (Deed.KILL,)
            case SourceState.LOST:
                return ()
            case _:
                return self.give_up()

    def _let_run(self) -> Sequence[Action]:
        return (Deed.THAW, Say(Word.FIN), Deed.FORGET)


@dataclass(slots=True)
class DestinationOwner:
    """The destination's side of one transaction: a register that is written once."""

    state: DestinationState = DestinationState.NONE
    has_copy: bool = True  # False: this host was booted anew, and it is gone
    uncertain: bool = False  # ACCEPTED was written, and may be on the disk or not

    def stand(self) -> Sequence[Action]:
        """The copy is whole, verified, frozen, and traced by nobody."""
        assert self.state is DestinationState.NONE
        # Not synced: READY and nothing at all are answered alike after a boot.
        return (Write(DestinationState.READY), Say(Word.READY))

    def heard_go(self) -> Sequence[Action]:
        """It is given to us."""
        match self.state:
            case DestinationState.READY if not self.uncertain:
                return self._accept()
            case DestinationState.ACCEPTED | DestinationState.DECLINED:
                return self.heard_query()
            case _:
                # Not built yet: a source says Go after our Ready only. Or settled.
                return ()

    def heard_query(self) -> Sequence[Action]:
        """The source asks what became of it."""
        match self.verdict():
            case Verdict.ACCEPTED:
                return (Deed.THAW, Say(Word.ACCEPTED))
            case Verdict.DIED:
                return (Say(Word.DIED),)
            case Verdict.DECLINED:
                return (Say(Word.DECLINED),)
            case Verdict.NOT_YET:
                return (Say(Word.NOT_YET),)

    def verdict(self) -> Verdict:
        """What we say of it now."""
        match self.state:
            case DestinationState.ACCEPTED:
                return Verdict.ACCEPTED if self.has_copy else Verdict.DIED
            case DestinationState.DECLINED | DestinationState.GONE:
                # What we have never heard of was never accepted: an ACCEPTED is
                # forgotten only once the source knows of it.
                return Verdict.DECLINED
            case _:
                return Verdict.NOT_YET

    def give_up(self) -> Sequence[Action]:
        """It failed, was aborted, or took too long: no, if we may still say so."""
        if self.uncertain or self.state not in (
            DestinationState.NONE,
            DestinationState.READY,
        ):
            return ()
        return self._decline()

    def heard_fin(self) -> Sequence[Action]:
        """The source knows how it ended."""
        match self.state:
            case DestinationState.ACCEPTED | DestinationState.DECLINED:
                return (Deed.FORGET, Say(Word.FIN_ACK))
            case DestinationState.GONE:
                return (Say(Word.FIN_ACK),)
            case _:
                return ()

    def recovered(self) -> Sequence[Action]:
        """Go on where whoever held this before us left off."""
        match self.state:
            case DestinationState.NONE | DestinationState.READY:
                # After a boot too: without a durable ACCEPTED it never ran.
                return self._decline()
            case DestinationState.ACCEPTED if self.has_copy:
                # It may be in the page cache only, and a sync that failed once tells
                # nothing when it is repeated. Written anew, or not believed.
                self.uncertain = True
                return self._accept()
            case DestinationState.DECLINED:
                return (Deed.KILL, Deed.FORGET)
            case _:
                return ()

    def wrote(self, action: Write) -> None:
        """The record is there, and rules."""
        assert isinstance(action.state, DestinationState)
        self.state = action.state
        self.uncertain = False

    def failed(self, action: Write) -> Sequence[Action]:
        """What is safe when the record may be there or not."""
        match action.state:
            case DestinationState.ACCEPTED if not self.uncertain:
                # It has never run. Once the no is in the journal, that is final.
                self.uncertain = True
                return self._decline()
            case DestinationState.ACCEPTED:
                # Somebody before us may have let it run and said so: hold it, and be
                # silent until a record can be written.
                self.state = DestinationState.READY
                return ()
            case DestinationState.DECLINED if self.uncertain:
                # A successor may read ACCEPTED: neither word is safe.
                self.state = DestinationState.READY
                return ()
            case DestinationState.DECLINED:
                # A successor reads NONE or READY, and says the same.
                self.state = DestinationState.DECLINED
                return (Deed.KILL, Say(Word.DECLINED))
            case _:
                return self._decline()

    def _accept(self) -> Sequence[Action]:
        return (
            Write(DestinationState.ACCEPTED, durable=True),
            Deed.THAW,
            Say(Word.ACCEPTED),
        )

    def _decline(self) -> Sequence[Action]:
        # Forgotten at once: of what is not known we say the same.
        return (
            Write(DestinationState.DECLINED),
            Deed.KILL,
            Say(Word.DECLINED),
            Deed.FORGET,
        )
