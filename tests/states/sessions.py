"""Whole hand-overs in simulated time: two hosts, a counting process, and dice.

The stories are those of ``source`` and ``destination``, told short; what decides in
them is real: the owners, the journal with its slots, the talk and its tables, the rules
of recovery. A copy that runs counts; every number is to come once, and in its order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from migrate.journal import Journal
from migrate.ownership import (
    Action,
    DestinationOwner,
    DestinationState,
    JournalFailed,
    SourceOwner,
    SourceState,
    Verdict,
    Write,
    perform,
)
from tests.states.disks import EPOCH, RECORDS, Fails
from tests.states.hosts import Copy
from tests.states.simulation import Clock, End, Link, Lost, Machine, Story, Wait
from tests.states.stories import ASK_S, TX, Arrival, Departure, Finder, heard
from transport import messages as m

COUNT_S: Final = 0.2
AGAIN_S: Final = (0.1, 5.0)
LOOK_AGAIN_S: Final = 1.0
FAULTS_END_S: Final = 30.0
QUIET_S: Final = 300.0  # longer than everything that is waited for, after that


class Broken(AssertionError):
    """What must not be."""


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each fault is, in each second; and what else may go wrong."""

    crash: float = 0.03  # of an agent, or a command
    power_cut: float = 0.0
    cut: float = 0.05
    failed_write: float = 0.0  # each
    source: type[SourceOwner] = SourceOwner
    destination: type[DestinationOwner] = DestinationOwner


class Process:
    """The process: at most one copy of it counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.copies = {"S": Copy.RUNS, "D": Copy.NONE}
        self._reached = {"S": 0, "D": 0}
        self.witness: list[tuple[str, int]] = []
        clock.after(COUNT_S, self._count)

    def freeze(self) -> None:
        if self.copies["S"] is Copy.RUNS:
            self.copies["S"] = Copy.FROZEN

    def image(self) -> bytes:
        """What the last pages hold."""
        return str(self._reached["S"]).encode()

    def build(self, image: bytes) -> None:
        self.copies["D"] = Copy.FROZEN
        self._reached["D"] = int(image)

    def thaw(self, where: str) -> None:
        if self.copies[where] is Copy.FROZEN:
            self.copies[where] = Copy.RUNS
        if list(self.copies.values()) == [Copy.RUNS, Copy.RUNS]:
            raise Broken("two copies run")

    def kill(self, where: str) -> None:
        if self.copies[where] is not Copy.NONE:
            self.copies[where] = Copy.DEAD

    def is_anywhere(self) -> bool:
        """Frozen or not."""
        return any(one in (Copy.RUNS, Copy.FROZEN) for one in self.copies.values())

    def _count(self) -> None:
        for where, copy in self.copies.items():
            if copy is Copy.RUNS:
                self._reached[where] += 1
                self.witness.append((where, self._reached[where]))
                if self._reached[where] != len(self.witness):
                    raise Broken(f"{self.witness[-1]} is number {len(self.witness)}")
        self._clock.after(COUNT_S, self._count)


class Session:
    """One life of two hosts; ``play`` it. The same seed plays the same again."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.odds = odds
        self.dice = random.Random(seed)
        self.clock = Clock()
        self.link = Link(self.clock, lambda: self.dice.uniform(0.0001, 0.05))
        self.process = Process(self.clock)
        self.source = Machine("S", self.clock)
        self.destination = Machine("D", self.clock)
        self.said: list[str] = []
        self.power_cuts = 0
        self.booted: set[str] = set()

    def play(self) -> None:
        """Faults, and then none.

        Raises:
            Broken: a promise.
        """
        self._begin()
        self.clock.after(1.0, self._maybe_fault)
        self.clock.run_until(FAULTS_END_S)
        self.note("no more faults")
        self.link.set(is_up=True)
        for machine in (self.source, self.destination):
            if not machine.has_power:
                self._boot(machine)
        self.clock.run_until(FAULTS_END_S + QUIET_S)
        self._judge()

    def note(self, what: str) -> None:
        """For whoever reads how it went."""
        self.said.append(f"{self.clock.now_s:.3f} {what}")

    def _begin(self) -> None:
        self._journal(self.source).write(RECORDS[SourceState.PRE])
        ours, theirs = End.pair(self.link)
        departure = self.source.tell(Departure(self, ours).story(), ours)
        arrival = self.destination.tell(Arrival(self, theirs).story(), theirs)
        self.source.keeper, self.destination.keeper = departure, arrival
        for machine in (self.source, self.destination):
            machine.tell(self._agent(machine))

    def _journal(self, machine: Machine) -> Journal:
        return Journal(machine.disk)

    # What goes wrong.

    def _maybe_fault(self) -> None:
        if self.clock.now_s >= FAULTS_END_S:
            return
        odds, dice = self.odds, self.dice
        for machine in (self.source, self.destination):
            if machine.has_power and dice.random() < odds.crash:
                self.note(f"{machine.name}: all of ours are killed")
                machine.kill_all()
                self._start_later(machine, dice.uniform(0.01, 4.0))
            if machine.has_power and dice.random() < odds.power_cut:
                self._cut_power(machine)
        if dice.random() < odds.cut:
            self.note("the link is cut or healed")
            self.link.set(is_up=not self.link.is_up)
        self.clock.after(dice.uniform(0.01, 0.5), self._maybe_fault)

    def _start_later(self, machine: Machine, seconds: float) -> None:
        def start() -> None:
            if machine.has_power:
                machine.tell(self._agent(machine))

        self.clock.after(seconds, start)

    def _cut_power(self, machine: Machine) -> None:
        self.note(f"{machine.name}: no power")
        self.power_cuts += 1
        machine.has_power = False
        machine.kill_all()
        self.process.kill(machine.name)
        disk = machine.disk
        for number, (new, old) in enumerate(zip(disk.cache, disk.disk, strict=True)):
            torn = new[:30] + old[30:]
            disk.disk[number] = self.dice.choice((new, old, torn))
        disk.cache[:] = disk.disk
        self.clock.after(self.dice.uniform(1.0, 20.0), lambda: self._boot(machine))

    def _boot(self, machine: Machine) -> None:
        if not machine.has_power:
            machine.has_power = True
            self.booted.add(machine.name)
            machine.tell(self._agent(machine))

    def write(self, machine: Machine, action: Write) -> None:
        """A record, as the disk takes it."""
        disk = machine.disk
        fails = self.dice.random() < self.odds.failed_write
        disk.fails = (
            self.dice.choice((Fails.AT_ONCE, Fails.LATE)) if fails else Fails.NOT
        )
        if self.clock.now_s >= FAULTS_END_S:
            disk.fails = Fails.NOT
        try:
            Journal(disk).write(RECORDS[action.state], durable=action.durable)
        except JournalFailed:
            self.note(f"{machine.name}: {action.state.name} could not be written")
            raise
        finally:
            disk.fails = Fails.NOT
        self.note(f"{machine.name}: {action.state.name}")

    # Who recovers, asks and answers.

    def _agent(self, machine: Machine) -> Story:
        """Settle what has lost its keeper, and ask about what is in doubt."""
        pause_s = AGAIN_S[0]
        while True:
            if not self._is_kept(machine):
                self._settle(machine)
                if machine is self.source and self._asks():
                    yield from self._ask()
                    yield Wait(pause_s)
                    pause_s = min(2 * pause_s, AGAIN_S[1])
                    continue
            pause_s = AGAIN_S[0]
            yield Wait(LOOK_AGAIN_S)

    def _is_kept(self, machine: Machine) -> bool:
        return machine.keeper is not None and machine.keeper.is_alive

    def owner(self, machine: Machine) -> SourceOwner | DestinationOwner | None:
        """As its journal says now."""
        record = self._journal(machine).record
        has_copy = machine.name not in self.booted
        if machine is self.source:
            if record is None:
                return None
            assert isinstance(record.state, SourceState)
            return self.odds.source(record.state, record.epoch, has_copy)
        state = DestinationState.GONE if record is None else record.state
        assert isinstance(state, DestinationState)
        return self.odds.destination(state, has_copy)

    def _settle(self, machine: Machine) -> None:
        owner = self.owner(machine)
        if owner is not None:
            perform(owner, owner.recovered(), Finder(self, machine))

    def _asks(self) -> bool:
        owner = self.owner(self.source)
        return owner is not None and owner.state in (SourceState.GO, SourceState.DONE)

    def _ask(self) -> Story:
        if not (self.link.is_up and self.destination.has_power):
            return
        ours, theirs = End.pair(self.link)
        self.destination.tell(self._answer(theirs), theirs)
        try:
            yield from heard(ours, ASK_S, m.Welcome)
            ours.say(m.Query(m.VERSION_MAX, TX))
            said = yield from heard(ours, ASK_S, m.Accepted, m.Declined, m.NotYet)
            self._told(said)
            if not isinstance(said, m.NotYet):
                ours.say(m.Fin())
                yield from heard(ours, ASK_S, m.FinAck)
                self._told(m.FinAck())
        except Lost:
            pass
        finally:
            ours.close()

    def _told(self, said: m.Message) -> None:
        owner = self.owner(self.source)
        if owner is None or self._is_kept(self.source):
            return
        assert isinstance(owner, SourceOwner)
        actions: Sequence[Action]
        match said:
            case m.Accepted(died=died, epoch=epoch):
                verdict = Verdict.DIED if died else Verdict.ACCEPTED
                actions = owner.heard(verdict, epoch)
            case m.Declined(epoch=epoch):
                actions = owner.heard(Verdict.DECLINED, epoch)
            case m.FinAck():
                actions = owner.heard_forgotten()
            case _:
                actions = ()
        perform(owner, actions, Finder(self, self.source))

    def _answer(self, end: End) -> Story:
        try:
            end.say(m.Welcome.ours("simulated"))
            yield from heard(end, ASK_S, m.Query)
            owner = (
                None
                if self._is_kept(self.destination)
                else self.owner(self.destination)
            )
            if owner is None:
                end.say(m.NotYet(TX))
                return
            assert isinstance(owner, DestinationOwner)
            perform(owner, owner.recovered(), Finder(self, self.destination))
            match owner.verdict():
                case Verdict.NOT_YET:
                    end.say(m.NotYet(TX))
                    return
                case Verdict.DECLINED:
                    end.say(m.Declined(TX, EPOCH, ()))
                case verdict:
                    end.say(m.Accepted(TX, EPOCH, verdict is Verdict.DIED, 0))
            yield from heard(end, ASK_S, m.Fin)
            owner = self.owner(self.destination)
            assert isinstance(owner, DestinationOwner)
            perform(owner, owner.heard_fin(), Finder(self, self.destination))
            end.say(m.FinAck())
        except Lost:
            return

    def _judge(self) -> None:
        copies = self.process.copies
        source = self.owner(self.source)
        lost = source is not None and source.state is SourceState.LOST
        if (
            list(copies.values()).count(Copy.RUNS) == 1
            and Copy.FROZEN not in copies.values()
        ):
            return
        if self.power_cuts and (lost or not self.process.is_anywhere()):
            return
        raise Broken(f"in the end: {copies}, {source}, {self.owner(self.destination)}")


def play(seed: int, odds: Odds) -> Session:
    """One life, to its end.

    Raises:
        Broken: a promise; it says how to see it again.
    """
    session = Session(seed, odds)
    try:
        session.play()
    except Broken as broken:
        how = "\n  ".join(session.said)
        raise Broken(f"MIGRATE_SEED={seed}: {broken}\n  {how}") from broken
    return session
