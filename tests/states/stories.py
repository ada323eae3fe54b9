"""The source's and the destination's story, told short, for a simulated session."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from migrate.journal import Journal
from migrate.ownership import (
    Action,
    Deed,
    DestinationState,
    Say,
    SourceState,
    Verdict,
    Word,
    Write,
    perform,
)
from tests.states.disks import EMPTY, EPOCH, RECORD, RECORDS
from tests.states.simulation import End, Lost, Machine, Said, Story, Wait
from tests.unit.transport_samples import OPTIONS
from transport import messages as m

if TYPE_CHECKING:
    from tests.states.sessions import Session

ROUND_S: Final = 600.0
T_FREEZE_S: Final = 5.0
DOUBT_S: Final = 3.0
READY_HOLD_S: Final = 120.0
ASK_S: Final = 10.0
TX: Final = RECORD.transaction
W = TypeVar("W")


def heard(
    end: End, timeout_s: float, *words: type[W]
) -> Generator[Wait, Said | None, W]:
    """The next word, which is one of these.

    Raises:
        Lost: it is not, or not in time.
    """
    said = yield Wait(timeout_s, end)
    if not isinstance(said, words):
        raise Lost
    return said


class Finder:
    """Does what the rules say to a copy that was found."""

    def __init__(self, session: Session, machine: Machine) -> None:
        self.session = session
        self.machine = machine

    def do(self, action: Action) -> None:
        """Do one."""
        process, name = self.session.process, self.machine.name
        match action:
            case Write():
                self.session.write(self.machine, action)
            case Say(word):
                self.say(word)
            case Deed.THAW:
                process.thaw(name)
            case Deed.KILL:
                process.kill(name)
            case Deed.FREEZE:
                process.freeze()
            case Deed.FORGET:
                self.machine.disk.cache[:] = [EMPTY, EMPTY]

    def say(self, word: Word) -> None:
        """Nobody is there to hear it."""


class Departure(Finder):
    """The source's story."""

    def __init__(self, session: Session, end: End) -> None:
        super().__init__(session, session.source)
        self.end = end
        self.owner = session.odds.source()

    def story(self) -> Story:
        """From Welcome to the last word."""
        end, dice = self.end, self.session.dice
        try:
            yield from heard(end, ASK_S, m.Welcome)
            end.say(m.Hello(m.VERSION_MAX, TX))
            end.say(m.Offer(b"outline", OPTIONS))
            yield from heard(end, ROUND_S, m.OfferAccepted)
            for number in range(1, dice.randint(1, 4) + 1):
                yield Wait(dice.uniform(0.1, 3.0))
                end.say(m.RoundEnd(number, 0, 0, 0))
                yield from heard(end, ROUND_S, m.RoundDone)
            perform(self.owner, self.owner.freeze(), self)
            if self.owner.state is not SourceState.FROZEN:
                return
            end.say(m.State(self.session.process.image()))
            yield Wait(dice.uniform(0.001, 0.1))
            end.say(m.End(0, 0, 0))
            ready = yield from heard(end, T_FREEZE_S, m.Ready)
            perform(self.owner, self.owner.ready(ready.epoch), self)
            said = yield from heard(end, DOUBT_S, m.Accepted, m.Declined)
            actions: Sequence[Action] = ()
            match said:
                case m.Accepted(epoch=epoch):
                    actions = self.owner.heard(Verdict.ACCEPTED, epoch)
                case m.Declined(epoch=epoch):
                    actions = self.owner.heard(Verdict.DECLINED, epoch)
            perform(self.owner, actions, self)
            yield from heard(end, ASK_S, m.FinAck)
            perform(self.owner, self.owner.heard_forgotten(), self)
        except Lost:
            perform(self.owner, self.owner.give_up(), self)

    def say(self, word: Word) -> None:
        words: dict[Word, m.AnyMessage] = {
            Word.GO: m.Go(),
            Word.FIN: m.Fin(),
            Word.ABORT: m.Abort(()),
        }
        said = words[word]
        if self.end.talk.may_say(type(said)):
            try:
                self.end.say(said)
            except Lost:
                return


class Arrival(Finder):
    """The destination's story."""

    def __init__(self, session: Session, end: End) -> None:
        super().__init__(session, session.destination)
        self.end = end
        self.owner = session.odds.destination()

    def story(self) -> Story:
        """From Welcome to the last word."""
        end, session = self.end, self.session
        try:
            end.say(m.Welcome.ours("simulated"))
            yield from heard(end, ASK_S, m.Hello)
            yield from heard(end, ASK_S, m.Offer)
            record = RECORDS[DestinationState.NONE]
            Journal(self.machine.disk).write(record, durable=True)
            yield Wait(session.dice.uniform(0.01, 0.5))
            end.say(m.OfferAccepted((4711,)))
            said = yield from heard(end, ROUND_S, m.RoundEnd, m.State)
            while isinstance(said, m.RoundEnd):
                end.say(m.RoundDone(said.number, 0, 0, 0))
                said = yield from heard(end, ROUND_S, m.RoundEnd, m.State)
            assert isinstance(said, m.State)
            state = said
            yield from heard(end, T_FREEZE_S, m.End)
            yield Wait(session.dice.uniform(0.001, 0.3))
            session.process.build(state.payload)
            perform(self.owner, self.owner.stand(), self)
            yield from heard(end, READY_HOLD_S, m.Go)
            perform(self.owner, self.owner.heard_go(), self)
            self.machine.keeper = None  # others may answer from now on
            yield from heard(end, ASK_S, m.Fin)
            perform(self.owner, self.owner.heard_fin(), self)
        except Lost:
            perform(self.owner, self.owner.give_up(), self)

    def say(self, word: Word) -> None:
        words: dict[Word, m.AnyMessage] = {
            Word.READY: m.Ready(b"", EPOCH, 0),
            Word.ACCEPTED: m.Accepted(TX, EPOCH, False, 0),
            Word.DECLINED: m.Declined(TX, EPOCH, ()),
            Word.FIN_ACK: m.FinAck(),
        }
        said = words[word]
        if self.end.talk.may_say(type(said)):
            try:
                self.end.say(said)
            except Lost:
                return
