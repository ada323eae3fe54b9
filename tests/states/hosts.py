"""A world of two hosts that hand a process over, as a value, and every step from it.

The owners and the journal are the real ones. What is modelled is around them: a copy
that runs, is frozen or gone; a page cache and a disk; agents that die between any two
actions; machines that lose power, and with it what was not synced, or half of it; and a
network on which a word, once said, may arrive at any time, any number of times, or
never. A new connection is then nothing special.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import Final, NamedTuple, TypeAlias

from migrate.journal import Journal
from migrate.ownership import (
    Action,
    Deed,
    DestinationOwner,
    DestinationState,
    Say,
    SourceOwner,
    SourceState,
    State,
    Verdict,
    Word,
    Write,
    step,
)
from tests.states.disks import (
    EMPTY,
    EPOCH,
    RECORDS,
    AgentDied,
    Disk,
    Fails,
)

QUERY: Final = "query"
DELTA: Final = "delta"  # the last pages and the state: its image is there
OTHER_EPOCH: Final = b"other epoch 0000"

# What is said: a word, and of a verdict the epoch.
Said: TypeAlias = tuple[Word | str, bytes]


class Copy(Enum):
    """The process, or its image, on one host."""

    NONE = "none"
    RUNS = "runs"
    FROZEN = "frozen"
    DEAD = "dead"


class Kind(Enum):
    """What makes a step happen."""

    LOCAL = "local"  # the host itself
    HEARD = "heard"  # a word arrives
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Laws:
    """The classes, what may go wrong how often, and what holds a copy."""

    source: type[SourceOwner] = SourceOwner
    destination: type[DestinationOwner] = DestinationOwner
    journal: type[Journal] = Journal
    crashes: int = 1  # of each agent
    power_cuts: int = 1  # of each host
    failed_writes: int = 0  # of each journal
    faults_at_source: bool = True
    faults_at_destination: bool = True
    source_thaws_with_agent: bool = False  # held by ptrace
    destination_thaws_with_agent: bool = False
    destination_dies_with_agent: bool = False  # PTRACE_O_EXITKILL
    destination_forgets: bool = False  # its state directory may be lost
    source_forgets: bool = False
    orphans_are_thawed: bool = False  # a frozen copy without a journal


class Host(NamedTuple):
    """One host, as a value."""

    powered: bool
    alive: bool  # its agent
    booted: bool  # anew, since the beginning
    copy: Copy
    cache: tuple[bytes, ...]
    disk: tuple[bytes, ...]
    owner: tuple[object, ...] | None
    left: tuple[Action, ...]
    crashes: int
    power_cuts: int
    failed_writes: int
    epoch: bytes


class World(NamedTuple):
    """Both, and all that was ever said."""

    source: Host
    destination: Host
    net: frozenset[Said]
    ran_here: bool  # the source's copy has executed after its image was taken
    ran_there: bool


class Step(NamedTuple):
    """One thing that may happen."""

    what: str
    kind: Kind
    after: World


@dataclass
class Hands:
    """Does the actions of one host, in a world that is being made."""

    laws: Laws
    world: World
    is_source: bool
    journal: Journal
    disk: Disk

    def do(self, action: Action) -> None:
        if isinstance(action, Write):
            self.journal.write(RECORDS[action.state], durable=action.durable)
        elif isinstance(action, Say):
            self.say(action.word)
        else:
            self.handle(action)

    def say(self, word: Word) -> None:
        epoch = EPOCH if self.is_source else self.world.destination.epoch
        self.world = self.world._replace(net=self.world.net | {(word, epoch)})

    def handle(self, deed: Deed) -> None:
        here = host(self.world, self.is_source)
        if deed is Deed.FREEZE and here.copy is Copy.RUNS:
            here = here._replace(copy=Copy.FROZEN)
        elif deed is Deed.THAW and here.copy is Copy.FROZEN:
            self.world = thawed(self.world, self.is_source)
            return
        elif deed is Deed.KILL and here.copy is not Copy.NONE:
            here = here._replace(copy=Copy.DEAD)
        elif deed is Deed.FORGET:
            self.disk.cache[:] = [EMPTY, EMPTY]
            if self.is_source:
                here = here._replace(owner=None)
            else:
                gone = self.laws.destination(DestinationState.GONE)
                here = here._replace(owner=packed(gone))
        self.world = with_host(self.world, here, self.is_source)


def host(world: World, is_source: bool) -> Host:
    return world.source if is_source else world.destination


def with_host(world: World, here: Host, is_source: bool) -> World:
    if is_source:
        return world._replace(source=here)
    return world._replace(destination=here)


def thawed(world: World, is_source: bool) -> World:
    here = host(world, is_source)._replace(copy=Copy.RUNS)
    if is_source:
        taken = (DELTA, b"") in world.net
        return world._replace(source=here, ran_here=world.ran_here or taken)
    return world._replace(destination=here, ran_there=True)


def packed(owner: SourceOwner | DestinationOwner) -> tuple[object, ...]:
    return tuple(
        getattr(owner, name) for name in _SLOTS[isinstance(owner, SourceOwner)]
    )


_SLOTS: Final = {
    True: ("state", "epoch", "has_copy"),
    False: ("state", "has_copy", "uncertain"),
}


def unpacked(
    laws: Laws, owner: tuple[object, ...], is_source: bool
) -> SourceOwner | DestinationOwner:
    made = (laws.source if is_source else laws.destination)()
    for name, value in zip(_SLOTS[is_source], owner, strict=True):
        setattr(made, name, value)
    return made


def start(laws: Laws) -> World:
    """A running process, and an agent that has been told that it comes."""
    source_disk = Disk([EMPTY, EMPTY], [EMPTY, EMPTY])
    laws.journal(source_disk).write(RECORDS[SourceState.PRE])
    there = Disk([EMPTY, EMPTY], [EMPTY, EMPTY])
    laws.journal(there).write(RECORDS[DestinationState.NONE], durable=True)
    return World(
        _host(Copy.RUNS, source_disk, laws.source()),
        _host(Copy.NONE, there, laws.destination()),
        frozenset(),
        ran_here=False,
        ran_there=False,
    )


def _host(copy: Copy, disk: Disk, owner: SourceOwner | DestinationOwner) -> Host:
    return Host(
        powered=True,
        alive=True,
        booted=False,
        copy=copy,
        cache=tuple(disk.cache),
        disk=tuple(disk.disk),
        owner=packed(owner),
        left=(),
        crashes=0,
        power_cuts=0,
        failed_writes=0,
        epoch=EPOCH,
    )


def steps(world: World, laws: Laws) -> Iterator[Step]:
    """Everything that may happen next."""
    yield from steps_of(world, laws, is_source=True)
    yield from steps_of(world, laws, is_source=False)


def steps_of(world: World, laws: Laws, *, is_source: bool) -> Iterator[Step]:
    """What may happen next on one host. Of the other it needs to know nothing."""
    if not (laws.faults_at_source if is_source else laws.faults_at_destination):
        laws = replace(laws, crashes=0, power_cuts=0, failed_writes=0)
    here = host(world, is_source)
    name = "S" if is_source else "D"
    if here.powered and here.alive:
        if here.left:
            yield from _act(world, laws, is_source)
        elif is_source:
            yield from _source(world, laws)
        else:
            yield from _destination(world, laws)
        if here.crashes < laws.crashes:
            yield Step(f"{name} agent dies", Kind.FAULT, _died(world, laws, is_source))
    elif here.powered:
        after = _recovered(world, laws, is_source)
        yield Step(f"{name} agent starts", Kind.LOCAL, after)
    if here.powered and here.power_cuts < laws.power_cuts:
        for cut in _power_cut(here):
            after = with_host(world, cut, is_source)
            yield Step(f"{name} loses power", Kind.FAULT, after)
    elif not here.powered:
        booted = here._replace(powered=True, booted=True)
        after = _recovered(with_host(world, booted, is_source), laws, is_source)
        yield Step(f"{name} boots", Kind.LOCAL, after)
    if here.powered:
        for written in _written_back(here):
            after = with_host(world, written, is_source)
            yield Step(f"{name} writes back", Kind.LOCAL, after)


def _act(world: World, laws: Laws, is_source: bool) -> Iterator[Step]:
    """Do the first action that is left; if it is a record, it may also fail."""
    here = host(world, is_source)
    name = "S" if is_source else "D"
    ways = [Fails.NOT]
    if isinstance(here.left[0], Write):
        if here.failed_writes < laws.failed_writes:
            ways += [Fails.AT_ONCE, Fails.LATE]
        if here.left[0].durable and here.crashes < laws.crashes:
            ways.append(Fails.WITH_THE_AGENT)
    for fails in ways:
        assert here.owner is not None
        owner = unpacked(laws, here.owner, is_source)
        disk = Disk(list(here.cache), list(here.disk), fails)
        hands = Hands(laws, world, is_source, laws.journal(disk), disk)
        left = deque(here.left)
        try:
            step(owner, left, hands)
        except AgentDied:
            after = host(hands.world, is_source)._replace(cache=tuple(disk.cache))
            dead = _died(with_host(hands.world, after, is_source), laws, is_source)
            yield Step(f"{name} agent dies in {here.left[0]}", Kind.FAULT, dead)
            continue
        after = host(hands.world, is_source)
        if here.left[0] is not Deed.FORGET:
            after = after._replace(owner=packed(owner))
        after = after._replace(
            left=tuple(left), cache=tuple(disk.cache), disk=tuple(disk.disk)
        )
        what, kind = f"{name} {here.left[0]}", Kind.LOCAL
        if fails is not Fails.NOT:
            after = after._replace(failed_writes=after.failed_writes + 1)
            what, kind = f"{what}: {fails.value}", Kind.FAULT
        yield Step(what, kind, with_host(hands.world, after, is_source))


def _then(
    world: World,
    owner: SourceOwner | DestinationOwner,
    actions: object,
    is_source: bool,
) -> World:
    assert isinstance(actions, tuple)
    here = host(world, is_source)._replace(owner=packed(owner), left=actions)
    return with_host(world, here, is_source)


_VERDICTS: Final = {
    Word.ACCEPTED: Verdict.ACCEPTED,
    Word.DECLINED: Verdict.DECLINED,
    Word.NOT_YET: Verdict.NOT_YET,
    Word.DIED: Verdict.DIED,
}


def _source(world: World, laws: Laws) -> Iterator[Step]:
    here = world.source
    if here.owner is None:
        if laws.source_forgets and here.copy is Copy.FROZEN and laws.orphans_are_thawed:
            yield Step("S thaws an orphan", Kind.LOCAL, thawed(world, True))
        return

    def owner() -> SourceOwner:
        assert here.owner is not None
        made = unpacked(laws, here.owner, True)
        assert isinstance(made, SourceOwner)
        return made

    now = owner()
    if now.state is SourceState.PRE and not here.booted:
        yield Step("S freezes", Kind.LOCAL, _then(world, now, now.freeze(), True))
    if now.state is SourceState.FROZEN and (DELTA, b"") not in world.net:
        after = world._replace(net=world.net | {(DELTA, b"")})
        yield Step("S sends its image", Kind.LOCAL, after)
    now = owner()
    if actions := now.give_up():
        yield Step("S gives up", Kind.LOCAL, _then(world, now, actions, True))
    if now.state is SourceState.GO and (QUERY, b"") not in world.net:
        after = world._replace(net=world.net | {(QUERY, b"")})
        yield Step("S asks", Kind.LOCAL, after)
    for word, epoch in world.net:
        now = owner()
        if word is Word.READY:
            actions = now.ready(epoch)
        elif word in _VERDICTS and isinstance(word, Word):
            actions = now.heard(_VERDICTS[word], epoch)
        elif word is Word.FIN_ACK:
            actions = now.heard_forgotten()
        else:
            continue
        if actions:
            after = _then(world, now, actions, True)
            yield Step(f"S hears {word.value}", Kind.HEARD, after)
    if laws.source_forgets and here.copy is Copy.FROZEN and not here.booted:
        lost = here._replace(cache=(EMPTY, EMPTY), disk=(EMPTY, EMPTY), owner=None)
        after = world._replace(source=lost)
        yield Step("S loses its journal", Kind.FAULT, after)


def _destination(world: World, laws: Laws) -> Iterator[Step]:
    here = world.destination
    assert here.owner is not None

    def owner() -> DestinationOwner:
        assert here.owner is not None
        made = unpacked(laws, here.owner, False)
        assert isinstance(made, DestinationOwner)
        return made

    now = owner()
    if now.state is DestinationState.NONE and here.epoch == EPOCH:
        if here.copy is Copy.NONE and (DELTA, b"") in world.net:
            built = world._replace(destination=here._replace(copy=Copy.FROZEN))
            yield Step("D builds the copy", Kind.HEARD, built)
        if here.copy is Copy.FROZEN:
            yield Step("D is ready", Kind.LOCAL, _then(world, now, now.stand(), False))
    now = owner()
    if actions := now.give_up():
        yield Step("D gives up", Kind.LOCAL, _then(world, now, actions, False))
    if now.uncertain:
        yield Step("D tries again", Kind.LOCAL, _recovered(world, laws, False))
    for word in (Word.GO, Word.ABORT, Word.FIN, QUERY):
        if (word, EPOCH) not in world.net and (word, b"") not in world.net:
            continue
        now = owner()
        if word is Word.GO:
            actions = now.heard_go()
        elif word is Word.ABORT:
            actions = now.give_up()
        elif word is Word.FIN:
            actions = now.heard_fin()
        else:
            actions = now.heard_query()
        said = {word for word, at in world.net if at == here.epoch}
        if all(isinstance(act, Say) and act.word in said for act in actions):
            continue  # nothing new under the sun
        after = _then(world, now, actions, False)
        yield Step(f"D hears {word}", Kind.HEARD, after)
    if laws.destination_forgets and here.epoch == EPOCH:
        gone = packed(laws.destination(DestinationState.GONE))
        lost = here._replace(
            cache=(EMPTY, EMPTY), disk=(EMPTY, EMPTY), owner=gone, epoch=OTHER_EPOCH
        )
        yield Step("D loses its journal", Kind.FAULT, world._replace(destination=lost))


def _died(world: World, laws: Laws, is_source: bool) -> World:
    here = host(world, is_source)
    here = here._replace(alive=False, owner=None, left=(), crashes=here.crashes + 1)
    world = with_host(world, here, is_source)
    if here.copy is not Copy.FROZEN:
        return world
    if is_source and laws.source_thaws_with_agent:
        return thawed(world, True)
    if not is_source and laws.destination_thaws_with_agent:
        return thawed(world, False)
    if not is_source and laws.destination_dies_with_agent:
        return with_host(world, here._replace(copy=Copy.DEAD), False)
    return world


def _written_back(here: Host) -> Iterator[Host]:
    for number, slot in enumerate(here.cache):
        if slot != here.disk[number]:
            disk = (*here.disk[:number], slot, *here.disk[number + 1 :])
            yield here._replace(disk=disk)


def _power_cut(here: Host) -> Iterator[Host]:
    """A slot that was not synced is the old one, or torn; or it was written back."""
    choices = []
    for new, old in zip(here.cache, here.disk, strict=True):
        torn = new[:30] + old[30:]  # in the middle of the digest
        choices.append((old, torn) if new != old else (old,))
    for slots in product(*choices):
        yield here._replace(
            powered=False,
            alive=False,
            owner=None,
            left=(),
            copy=Copy.DEAD if here.copy is not Copy.NONE else Copy.NONE,
            cache=slots,
            disk=slots,
            power_cuts=here.power_cuts + 1,
        )


def _recovered(world: World, laws: Laws, is_source: bool) -> World:
    """Somebody reads the journal and goes on."""
    here = host(world, is_source)._replace(alive=True)
    record = laws.journal(Disk(list(here.cache), list(here.disk))).record
    owner: SourceOwner | DestinationOwner
    if is_source:
        if record is None:
            return with_host(world, here._replace(owner=None, left=()), True)
        assert isinstance(record.state, SourceState)
        owner = laws.source(record.state, record.epoch, not here.booted)
    else:
        state: State = DestinationState.GONE if record is None else record.state
        assert isinstance(state, DestinationState)
        owner = laws.destination(state, not here.booted)
    here = here._replace(owner=packed(owner), left=tuple(owner.recovered()))
    # What recovered() has set counts too.
    return with_host(world, here._replace(owner=packed(owner)), is_source)
