"""Every reachable world of two sides and the wires between them: never two copies.

Goal: no order of words, crossings, losses or deaths of the link lets both sides run the
process, or lets it run again at the source after it ran at the destination.
Method: breadth first over (both sides, both wires). The tables are small enough to be
visited whole, so nothing here is random and nothing is missed. The same walk over
broken tables shows that it would see.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytest

from transport import messages as m
from transport.errors import LocalProtocolError
from transport.states import (
    RULES,
    Role,
    Rules,
    State,
    Step,
    Word,
    advance,
    is_late,
    on_trouble,
)

WIRE_MAX = 3  # words in flight each way; enough for any crossing of three


class Side(NamedTuple):
    """One agent, and whether the process can execute where it is."""

    state: State
    runs: bool
    linked: bool  # it has not noticed yet that the link is dead
    heard: tuple[Word, ...]  # the wire towards it


class World(NamedTuple):
    source: Side
    destination: Side
    ran_there: bool  # the destination's copy has executed
    accused: Step | None  # an honest word that the other side took for an attack

    def side(self, role: Role) -> Side:
        return self.source if role is Role.SOURCE else self.destination

    def having(self, role: Role, side: Side) -> "World":
        if role is Role.SOURCE:
            return self._replace(source=side)
        return self._replace(destination=side, ran_there=self.ran_there or side.runs)


START = World(
    Side(State.CONNECTED, runs=True, linked=True, heard=()),
    Side(State.CONNECTED, runs=False, linked=True, heard=()),
    ran_there=False,
    accused=None,
)


def sayable(world: World, role: Role, rules: Rules) -> list[Word]:
    """What ``role`` may say, as its story would: State only of a frozen tree, and of
    its own copy only the truth."""
    side = world.side(role)
    words = [
        word
        for (who, word), after in rules.transitions[side.state].items()
        if who is role and after is not side.state
    ]
    if side.state in rules.abortable[role]:
        words.append(m.Abort)
    untrue: Word | None
    if role is Role.SOURCE:
        untrue = m.State if side.runs else None
    else:
        untrue = m.Declined if side.runs else m.Accepted
    return [word for word in words if word is not untrue]


def speak(world: World, role: Role, rules: Rules) -> Iterator[World]:
    side, peer = world.side(role), world.side(role.peer)
    if not side.linked or len(peer.heard) >= WIRE_MAX:
        return
    for word in sayable(world, role, rules):
        said = world.having(
            role, side._replace(state=advance(side.state, role, word, rules))
        )
        # Towards a peer that has left, it is lost.
        heard = (*peer.heard, word) if peer.linked else ()
        yield said.having(role.peer, peer._replace(heard=heard))


def hear(world: World, role: Role, rules: Rules) -> Iterator[World]:
    side = world.side(role)
    if not side.heard or not side.linked:
        return
    word, *rest = side.heard
    side = side._replace(heard=tuple(rest))
    try:
        state = advance(side.state, role.peer, word, rules)
    except LocalProtocolError:
        if is_late(side.state, role.peer, word, rules):
            yield world.having(role, side)
            return
        state = on_trouble(side.state, role, rules)
        world = world._replace(accused=(role.peer, word))
    yield world.having(role, side._replace(state=state))


def lose_the_link(world: World, role: Role, rules: Rules) -> Iterator[World]:
    """``role`` finds the link dead; what was still on its way to it is lost."""
    side = world.side(role)
    if side.linked:
        state = on_trouble(side.state, role, rules)
        yield world.having(role, side._replace(state=state, linked=False, heard=()))


def freeze_or_run(world: World, role: Role, rules: Rules) -> Iterator[World]:
    """The source may freeze at any time; either may let run what the table allows."""
    side = world.side(role)
    if role is Role.SOURCE and side.runs and side.state is State.PRECOPY:
        yield world.having(role, side._replace(runs=False))
    if not side.runs and side.state in rules.may_run[role]:
        yield world.having(role, side._replace(runs=True))


MOVES: tuple[Callable[[World, Role, Rules], Iterator[World]], ...] = (
    speak,
    hear,
    lose_the_link,
    freeze_or_run,
)


def walk(rules: Rules) -> set[World]:
    """All worlds that can be reached; fails at the first with two lives."""
    seen, queue = {START}, deque([START])
    while queue:
        world = queue.popleft()
        assert not (world.source.runs and world.destination.runs), world
        assert not (world.source.runs and world.ran_there), world
        for move in MOVES:
            for role in Role:
                for after in move(world, role, rules):
                    if after not in seen:
                        seen.add(after)
                        queue.append(after)
    return seen


def test_the_process_never_runs_twice() -> None:
    """In no reachable world do both sides run it, or does it run in its own past."""
    walk(RULES)


def test_every_ending_is_reached() -> None:
    """Some worlds end with it at the destination, some at the source, both agreeing."""
    seen = walk(RULES)
    for end in (State.RELEASED, State.RETURNED, State.REFUSED, State.ABORTED):
        assert any(w.source.state is end and w.destination.state is end for w in seen)


def test_honest_sides_never_accuse_each_other() -> None:
    """Whatever two honest sides say and however it crosses, neither takes the other's
    word for a breach of the protocol."""
    accusations = {w.accused for w in walk(RULES)} - {None}
    assert not accusations


def test_a_source_in_doubt_is_frozen() -> None:
    """At GO the source's copy is frozen in every world, link or no link."""
    in_go = [w.source for w in walk(RULES) if w.source.state is State.GO]
    assert in_go and not any(side.runs for side in in_go)
    assert any(not side.linked for side in in_go)


def test_only_go_can_be_in_doubt() -> None:
    """Once both sides know that the link is dead, nobody is left in between except a
    source that had said Go."""
    settled = {
        State.PENDING,
        State.ABORTED,
        State.REFUSED,
        State.DECLINED,
        State.RETURNING,
        State.RETURNED,
        State.ACCEPTED,
        State.RELEASING,
        State.RELEASED,
    }
    for w in walk(RULES):
        if w.source.linked or w.destination.linked:
            continue
        assert w.source.state in settled | {State.GO}, w
        assert w.destination.state in settled | {State.GO}, w


def test_a_live_link_never_leaves_both_waiting() -> None:
    """While the link lives and the talk is not over, somebody can speak or hear."""
    over = {
        State.PENDING,
        State.REFUSED,
        State.ABORTED,
        State.RELEASED,
        State.RETURNED,
    }
    for w in walk(RULES):
        if not (w.source.linked and w.destination.linked):
            continue
        if w.source.state in over and w.destination.state in over:
            continue
        steps = [
            after
            for move in (speak, hear, freeze_or_run)
            for role in Role
            for after in move(w, role, RULES)
        ]
        assert steps, w


def with_steps(state: State, steps: Mapping[Step, State]) -> Rules:
    """RULES with ``steps`` added to those of ``state``."""
    broken = dict(RULES.transitions)
    broken[state] = {**broken[state], **steps}
    return replace(RULES, transitions=MappingProxyType(broken))


def with_trouble(role: Role, state: State, after: State) -> Rules:
    """RULES where a dead link leaves ``role`` elsewhere."""
    broken = {**RULES.trouble, role: {**RULES.trouble[role], state: after}}
    return replace(RULES, trouble=broken)


def with_run(role: Role, state: State) -> Rules:
    """RULES where ``role`` may let the process run in ``state`` too."""
    broken = {**RULES.may_run, role: RULES.may_run[role] | {state}}
    return replace(RULES, may_run=broken)


def with_abort(role: Role, state: State) -> Rules:
    """RULES where ``role`` may say Abort in ``state`` too."""
    broken = {**RULES.abortable, role: RULES.abortable[role] | {state}}
    return replace(RULES, abortable=broken)


MUTANTS = {
    "the source aborts after Go": with_abort(Role.SOURCE, State.GO),
    "the source is not in doubt at Go": with_trouble(
        Role.SOURCE, State.GO, State.ABORTED
    ),
    "the source thaws at Go": with_run(Role.SOURCE, State.GO),
    "the source thaws at Ready and goes on": with_run(Role.SOURCE, State.READY),
    "the source thaws when all is sent": with_run(Role.SOURCE, State.ENDED),
    "the source thaws when it is accepted": with_run(Role.SOURCE, State.ACCEPTED),
    "the destination starts at Ready": with_run(Role.DESTINATION, State.READY),
    "the destination starts what it declined": with_run(
        Role.DESTINATION, State.DECLINED
    ),
    "the destination takes a dead link for Go": with_trouble(
        Role.DESTINATION, State.READY, State.GO
    ),
    "the destination declines, then hears Go": with_steps(
        State.DECLINED, {(Role.SOURCE, m.Go): State.GO}
    ),
    "the destination aborts what it started": with_abort(Role.DESTINATION, State.GO),
}


@pytest.mark.parametrize("rules", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_walk_sees_broken_tables(rules: Rules) -> None:
    """Each of these tables lets the process run twice, and the walk finds where."""
    with pytest.raises(AssertionError, match="World"):
        walk(rules)
