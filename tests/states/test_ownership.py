"""Every world that two owners and their journals can reach: never two, never none.

Goal: whatever dies, loses power, fails to write, or is lost, repeated and overtaken on
the way, at most one copy runs; what has run there never runs here again; and while no
machine has died, there is a copy. Who waits for ever when the link is cut is a source
that has said Go.
Method: breadth first over ``hosts``, with the real classes and the real journal. Broken
ones show that it would see; a walk by dice, with more faults than can be visited whole,
shows the rest. MIGRATE_WALK=all walks it all with more faults, MIGRATE_SEED=N replays.
"""

import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, NamedTuple, TypeAlias

import pytest

from migrate.journal import Journal
from migrate.ownership import SourceState, Word, Write
from tests.states import broken_owners as broken
from tests.states.disks import EPOCH, Disk
from tests.states.hosts import (
    Copy,
    Host,
    Kind,
    Laws,
    Said,
    World,
    start,
    steps,
    steps_of,
    with_host,
)

THOROUGH: Final = os.environ.get("MIGRATE_WALK") == "all"
AT_SOURCE: Final = Laws(faults_at_destination=False)
AT_DESTINATION: Final = Laws(faults_at_source=False)
CRASHES: Final = Laws(power_cuts=0)
WALKS: Final = {
    "a crash on each side": CRASHES,
    "a crash and a power cut of the destination": AT_DESTINATION,
    "writes that fail at the source": replace(AT_SOURCE, power_cuts=0, failed_writes=2),
    "writes that fail at the destination": replace(
        AT_DESTINATION, power_cuts=0, failed_writes=2
    ),
    "the destination loses its journal": replace(CRASHES, destination_forgets=True),
    "the source loses its journal": replace(CRASHES, source_forgets=True),
}
LOSSES: Final = [name for name in WALKS if "loses" in name]
# Whose steps are gone over backwards as well: that takes memory.
SMALL: Final = ["a crash on each side"]
if THOROUGH:
    SMALL.extend(["a crash and a power cut of the source"])
    SMALL.extend(["a crash and a power cut of the destination"])
    WALKS.update(
        {
            "a power cut on each side": Laws(crashes=0),
            "a crash and a power cut of the source": AT_SOURCE,
            "a crash and a power cut on each side": Laws(),
            "a crash and a write that fails on each side": replace(
                CRASHES, failed_writes=1
            ),
            "everything twice at the source": replace(
                AT_SOURCE, crashes=2, power_cuts=2, failed_writes=2
            ),
            "everything twice at the destination": replace(
                AT_DESTINATION, crashes=2, power_cuts=2, failed_writes=2
            ),
        }
    )


# A world as the walk has it: both hosts, all that was said, and where it ran; numbers
# for the values of an Atlas, which compare and hash in no time.
Place: TypeAlias = tuple[int, int, int, bool, bool]


class Move(NamedTuple):
    """A step on one host."""

    what: str
    kind: Kind
    host: int
    net: int
    ran: bool


class Atlas:
    """Numbers for hosts and for what was said; and what may happen on a host."""

    def __init__(self, laws: Laws) -> None:
        self.laws = laws
        self.first = start(laws)
        self._hosts: dict[Host, int] = {}
        self._nets: dict[frozenset[Said], int] = {}
        self.hosts: list[Host] = []
        self.nets: list[frozenset[Said]] = []
        self._moves: dict[tuple[int, int, bool], list[Move]] = {}

    def place(self, world: World) -> Place:
        source, destination, net, *ran = world
        here, there = self._host(source), self._host(destination)
        return (here, there, self._net(net), ran[0], ran[1])

    def world(self, place: Place) -> World:
        source, destination, net, *ran = place
        here, there = self.hosts[source], self.hosts[destination]
        return World(here, there, self.nets[net], ran[0], ran[1])

    def steps(self, place: Place) -> Iterator[tuple[str, Kind, Place]]:
        source, destination, net, ran_here, ran_there = place
        for what, kind, host, said, ran in self._moves_of(source, net, True):
            yield what, kind, (host, destination, said, ran_here or ran, ran_there)
        for what, kind, host, said, ran in self._moves_of(destination, net, False):
            yield what, kind, (source, host, said, ran_here, ran_there or ran)

    def _moves_of(self, host: int, net: int, is_source: bool) -> list[Move]:
        known = self._moves.get((host, net, is_source))
        if known is None:
            world = with_host(self.first, self.hosts[host], is_source)
            world = world._replace(net=self.nets[net])
            known = [
                Move(
                    one.what,
                    one.kind,
                    self._host(
                        one.after.source if is_source else one.after.destination
                    ),
                    self._net(one.after.net),
                    one.after.ran_here if is_source else one.after.ran_there,
                )
                for one in steps_of(world, self.laws, is_source=is_source)
            ]
            self._moves[host, net, is_source] = known
        return known

    def _host(self, host: Host) -> int:
        number = self._hosts.setdefault(host, len(self._hosts))
        if number == len(self.hosts):
            self.hosts.append(host)
        return number

    def _net(self, net: frozenset[Said]) -> int:
        number = self._nets.setdefault(net, len(self._nets))
        if number == len(self.nets):
            self.nets.append(net)
        return number


@dataclass(frozen=True)
class Walk:
    """Every world that was reached, and from where."""

    atlas: Atlas
    came_from: dict[Place, tuple[Place, str] | None]

    def story(self, place: Place) -> str:
        """The shortest way to it."""
        words: list[str] = []
        at = place
        while (before := self.came_from[at]) is not None:
            at, what = before
            words.append(what)
        return " > ".join(reversed(words))

    def that(self, holds: Callable[[World], bool]) -> set[Place]:
        """The worlds of which it holds."""
        return {at for at in self.came_from if holds(self.atlas.world(at))}


class Broken(AssertionError):
    """A world that must not be."""


def judge(world: World) -> str | None:
    """What is wrong with it, in itself."""
    source, destination, net, ran_here, ran_there = world
    if source.copy is Copy.RUNS and destination.copy is Copy.RUNS:
        return "two copies run"
    if ran_here and ran_there:
        return "it ran there, and then again from where it was frozen here"
    machine_died = source.power_cuts or destination.power_cuts
    gone = source.copy is Copy.DEAD and destination.copy in (Copy.NONE, Copy.DEAD)
    if gone and not machine_died:
        return "no copy is left, and no machine died"
    said = {word for word, epoch in net if epoch == EPOCH}
    if {Word.ACCEPTED, Word.DECLINED} <= said and Word.FIN not in said:
        return "both words were said"
    return None


def walked(laws: Laws) -> Walk:
    """All of it, or Broken with the shortest way to the first world that is wrong."""
    atlas = Atlas(laws)
    first = atlas.place(atlas.first)
    walk = Walk(atlas, {first: None})
    queue = deque([first])
    while queue:
        place = queue.popleft()
        if wrong := judge(atlas.world(place)):
            raise Broken(f"{wrong}: {walk.story(place)}")
        for what, _, after in atlas.steps(place):
            if after not in walk.came_from:
                walk.came_from[after] = (place, what)
                queue.append(after)
    return walk


@cache
def walked_once(name: str) -> Walk:
    return walked(WALKS[name])


def leads_to(walk: Walk, ends: Iterable[Place], kinds: set[Kind]) -> set[Place]:
    """The worlds from which one of ``ends`` can be reached by steps of these kinds."""
    backwards: dict[Place, list[Place]] = {}
    for place in walk.came_from:
        for _, kind, after in walk.atlas.steps(place):
            if kind in kinds:
                backwards.setdefault(after, []).append(place)
    reached = set(ends)
    queue = deque(reached)
    while queue:
        for before in backwards.get(queue.popleft(), ()):
            if before not in reached:
                reached.add(before)
                queue.append(before)
    return reached


def is_settled(world: World) -> bool:
    """One copy runs and the other is gone; or a machine died and took it along."""
    source, destination = world.source, world.destination
    if not (source.alive and destination.alive):
        return False
    nothing = (Copy.NONE, Copy.DEAD)
    here = source.copy is Copy.RUNS and destination.copy in nothing
    there = destination.copy is Copy.RUNS and source.copy is Copy.DEAD
    cut = source.power_cuts or destination.power_cuts
    dead = cut and source.copy is Copy.DEAD and destination.copy in nothing
    lost = state(world) is SourceState.LOST
    return bool(here or there or dead or lost)


def state(world: World) -> object:
    """What the source's journal says now."""
    record = Journal(Disk(list(world.source.cache), [])).record
    return None if record is None else record.state


@pytest.mark.parametrize("name", WALKS)
def test_never_two_and_never_none(name: str) -> None:
    """In no reachable world does it run twice, go back in time, or vanish."""
    walk = walked_once(name)
    print(f"{name}: {len(walk.came_from)} worlds")
    assert walk.that(lambda world: world.destination.copy is Copy.RUNS)
    assert walk.that(lambda world: world.source.owner is None and world.source.alive)


@pytest.mark.parametrize("name", [*SMALL, *LOSSES])
def test_a_healed_link_settles_it(name: str) -> None:
    """From every world, with no more faults and a link that carries, it is settled;
    but where a journal was lost, an operator has to say so."""
    walk = walked_once(name)
    ways_there = {Kind.LOCAL, Kind.HEARD}
    settled = leads_to(walk, walk.that(is_settled), ways_there)
    for stuck in walk.came_from.keys() - settled:
        world = walk.atlas.world(stuck)
        lost = world.destination.epoch != EPOCH or state(world) is None
        assert lost, walk.story(stuck)


@pytest.mark.parametrize("name", SMALL)
def test_only_go_waits_for_a_cut_link(name: str) -> None:
    """If nothing is heard any more from now on: some copy runs within our own power,
    unless the source has written Go and the destination not accepted, or died."""
    walk = walked_once(name)
    blocked = walk.came_from.keys() - leads_to(
        walk, walk.that(runs_or_died), {Kind.LOCAL}
    )
    assert blocked
    for place in blocked:
        world = walk.atlas.world(place)
        goes = Write(SourceState.GO) in world.source.left
        assert goes or state(world) is SourceState.GO, walk.story(place)
        assert world.destination.copy is not Copy.RUNS


def runs_or_died(world: World) -> bool:
    """A copy runs, or one was taken by the death of its machine."""
    return any(
        host.copy is Copy.RUNS or (host.power_cuts and host.copy is Copy.DEAD)
        for host in (world.source, world.destination)
    )


FAILING: Final = replace(CRASHES, failed_writes=1)
SOURCE_FAILS: Final = replace(FAILING, faults_at_destination=False)
DESTINATION_FAILS: Final = replace(FAILING, faults_at_source=False)
MUTANTS: Final = {
    "the source is held by ptrace only": replace(CRASHES, source_thaws_with_agent=True),
    "the destination is held by ptrace only": replace(
        CRASHES, destination_thaws_with_agent=True
    ),
    "the destination dies with its agent": replace(
        CRASHES, destination_dies_with_agent=True
    ),
    "an orphan is thawed": replace(
        CRASHES, source_forgets=True, orphans_are_thawed=True
    ),
    "Go is said before it is written": replace(CRASHES, source=broken.SaysGoFirst),
    "the source gives up after Go": replace(CRASHES, source=broken.GivesUpAfterGo),
    "the source thaws at Go when it starts": replace(
        CRASHES, source=broken.ThawsGoWhenItStarts
    ),
    "the source kills at Go": replace(CRASHES, source=broken.KillsAtGo),
    "the source believes any journal": replace(
        CRASHES, source=broken.BelievesAnyJournal, destination_forgets=True
    ),
    "Go is said though it was not written": replace(
        SOURCE_FAILS, source=broken.SaysGoThoughItFailed
    ),
    "not yet is taken for no": replace(CRASHES, source=broken.TakesNotYetForNo),
    "it runs there before Go": replace(CRASHES, destination=broken.RunsWhenReady),
    "ACCEPTED is not synced": replace(AT_DESTINATION, destination=broken.DoesNotSync),
    "it is thawed before ACCEPTED is written": replace(
        AT_DESTINATION, destination=broken.ThawsFirst
    ),
    "it accepts what it declined": replace(
        CRASHES, destination=broken.AcceptsWhatItDeclined
    ),
    "it says no and forgets that": replace(
        CRASHES, destination=broken.SaysNoAndForgetsIt
    ),
    "it says no before that is written": replace(
        CRASHES, destination=broken.SaysNoBeforeItIsWritten
    ),
    "it forgets what it accepted": replace(
        CRASHES, destination=broken.ForgetsWhatItAccepted
    ),
    "it thaws though the sync failed": replace(
        DESTINATION_FAILS, power_cuts=1, destination=broken.ThawsThoughItFailed
    ),
    "it believes an ACCEPTED that it finds": replace(
        AT_DESTINATION, destination=broken.BelievesWhatItFinds
    ),
    "it says no though a yes may be there": replace(
        DESTINATION_FAILS, failed_writes=2, destination=broken.SaysNoThoughItMayReadYes
    ),
    "it declines what it accepted": replace(
        CRASHES, destination=broken.DeclinesWhatItAcceptedWhenItStarts
    ),
    "the journal writes over its last record": replace(
        AT_DESTINATION, crashes=2, journal=broken.OneSlot
    ),
    "the journal reads the older record": replace(
        CRASHES, journal=broken.ReadsTheOlder
    ),
}


@pytest.mark.parametrize("laws", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_walk_sees_a_broken_promise(laws: Laws) -> None:
    """Each of these breaks it, and the walk finds where."""
    with pytest.raises(Broken) as found:
        walked(laws)
    print(found.value)


def test_dice_find_no_broken_promise() -> None:
    """Two hundred lives with faults of every kind, many of each; replayed by seed."""
    laws = Laws(
        crashes=4,
        power_cuts=2,
        failed_writes=3,
        destination_forgets=True,
        source_forgets=True,
    )
    seed = os.environ.get("MIGRATE_SEED")
    lives = 20_000 if THOROUGH else 200
    for number in [int(seed)] if seed else range(lives):
        play(random.Random(number), laws, f"MIGRATE_SEED={number}")


def play(dice: random.Random, laws: Laws, how_again: str) -> None:
    """One life of two hosts, in which a fault is one step in ten."""
    world = start(laws)
    said: list[str] = []
    for _ in range(120):
        found = list(steps(world, laws))
        faults = [one for one in found if one.kind is Kind.FAULT]
        others = [one for one in found if one.kind is not Kind.FAULT]
        if not faults and not others:
            return
        choice = faults if faults and (not others or dice.random() < 0.1) else others
        chosen = dice.choice(choice)
        world = chosen.after
        said.append(chosen.what)
        wrong = judge(world)
        assert wrong is None, f"{how_again}: {wrong}: {' > '.join(said)}"
