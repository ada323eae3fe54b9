"""The states of a migration, and the only words that move it between them.

Rule 1: whatever decides a state lives in these tables; nothing else assigns one.
Rule 2: the tables do not know which side is ours. Each side keeps both roles in step,
so one table judges what we say and what we hear.

The talk is half duplex: in every state one side has the floor. Three words may be said
out of turn, and so may cross another on the wire: Abort, Declined and Ping. What a
peer said before it heard us give up is listed in LATE, and dropped.

The promise behind it: the process never runs twice. The source may run it while nobody
else can have been given it. From Go on only the destination's word counts, and a link
that dies then leaves the source in doubt: it stays frozen. No timeout changes that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, TypeAlias

from transport import messages as m
from transport.errors import LocalProtocolError


class Role(Enum):
    """The two sides of a migration."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def peer(self) -> "Role":
        """The other one."""
        return Role.DESTINATION if self is Role.SOURCE else Role.SOURCE


class State(Enum):
    """How far two agents have come."""

    CONNECTED = "connected"  # nobody has spoken
    WELCOMED = "welcomed"
    ASKED = "asked"  # what became of a migration of which the link was lost
    PENDING = "pending"  # asked too early
    INTRODUCED = "introduced"  # version and transaction are agreed
    OFFERED = "offered"  # the process runs, untouched
    REFUSED = "refused"
    PRECOPY = "pre-copy"  # pages flow; the process runs, tracked
    ROUND_ENDED = "round ended"  # the source waits for the tally
    STOPPED = "stopped"  # stop-and-copy: downtime has begun
    ENDED = "ended"  # everything is sent, the destination puts it in place
    READY = "ready"  # all there, verified, frozen
    GO = "go"  # handed over: the source must not thaw it any more
    ACCEPTED = "accepted"  # it runs at the destination
    RELEASING = "releasing"
    RELEASED = "released"  # both sides know that it runs at the destination
    ABORTED = "aborted"  # given up before Ready or by the source after it
    DECLINED = "declined"  # the destination will never run it
    RETURNING = "returning"
    RETURNED = "returned"  # both sides know that it runs at the source


Word: TypeAlias = type[m.Message] | type[m.Pages]
Step: TypeAlias = tuple[Role, Word]  # who speaks, and what

_S: Final = Role.SOURCE
_D: Final = Role.DESTINATION


@dataclass(frozen=True, slots=True)
class Rules:
    """The tables. Tests walk them whole, and walk broken copies of them."""

    transitions: Mapping[State, Mapping[Step, State]]
    abortable: Mapping[Role, frozenset[State]]  # who may say Abort when
    late: Mapping[State, frozenset[Step]]  # what may still arrive, and is dropped
    trouble: Mapping[Role, Mapping[State, State]]  # where a dead link leaves a side
    may_run: Mapping[Role, frozenset[State]]  # who may let the process run when


TRANSITIONS: Final[Mapping[State, Mapping[Step, State]]] = MappingProxyType(
    {
        State.CONNECTED: {
            (_D, m.Welcome): State.WELCOMED,
            (_D, m.Refused): State.REFUSED,  # too busy to talk
        },
        State.WELCOMED: {
            (_S, m.Hello): State.INTRODUCED,
            (_S, m.Query): State.ASKED,
        },
        State.ASKED: {
            (_D, m.Accepted): State.ACCEPTED,
            (_D, m.Declined): State.DECLINED,
            (_D, m.NotYet): State.PENDING,
            # Not State.ABORTED: this ends the question, not the migration.
            (_D, m.Abort): State.PENDING,
        },
        State.INTRODUCED: {(_S, m.Offer): State.OFFERED},
        State.OFFERED: {
            (_D, m.OfferAccepted): State.PRECOPY,
            (_D, m.Refused): State.REFUSED,
        },
        State.PRECOPY: {
            (_S, m.Layout): State.PRECOPY,
            (_S, m.Pages): State.PRECOPY,
            (_S, m.RoundEnd): State.ROUND_ENDED,
            (_S, m.State): State.STOPPED,
        },
        State.ROUND_ENDED: {(_D, m.RoundDone): State.PRECOPY},
        State.STOPPED: {
            (_S, m.Layout): State.STOPPED,
            (_S, m.Pages): State.STOPPED,
            (_S, m.End): State.ENDED,
        },
        State.ENDED: {(_D, m.Ready): State.READY},
        State.READY: {
            (_S, m.Go): State.GO,
            (_D, m.Declined): State.DECLINED,
        },
        State.GO: {
            (_D, m.Accepted): State.ACCEPTED,
            (_D, m.Declined): State.DECLINED,
        },
        State.ACCEPTED: {(_S, m.Fin): State.RELEASING},
        State.RELEASING: {(_D, m.FinAck): State.RELEASED},
        State.ABORTED: {(_D, m.Declined): State.DECLINED},
        State.DECLINED: {(_S, m.Fin): State.RETURNING},
        State.RETURNING: {(_D, m.FinAck): State.RETURNED},
        State.PENDING: {},
        State.REFUSED: {},
        State.RELEASED: {},
        State.RETURNED: {},
    }
)

_BEFORE_READY: Final = frozenset(
    {
        State.CONNECTED,
        State.WELCOMED,
        State.INTRODUCED,
        State.OFFERED,
        State.PRECOPY,
        State.ROUND_ENDED,
        State.STOPPED,
        State.ENDED,
    }
)

# The source may give up alone until it says Go. The destination has promised at Ready
# that nothing can fail: after it, it takes its word back with Declined, which it has
# written down first.
ABORTABLE: Final[Mapping[Role, frozenset[State]]] = MappingProxyType(
    {
        _S: (_BEFORE_READY | {State.READY}) - {State.CONNECTED},
        # In WELCOMED nothing has been asked of it yet, and a Query may be on its way,
        # which is answered, not aborted.
        _D: _BEFORE_READY - {State.CONNECTED, State.WELCOMED},
    }
)

_ALL_BEFORE_READY: Final = frozenset(
    step for state in _BEFORE_READY for step in TRANSITIONS[state]
)

LATE: Final[Mapping[State, frozenset[Step]]] = MappingProxyType(
    {
        State.ABORTED: _ALL_BEFORE_READY | {(_S, m.Abort), (_D, m.Abort)},
        State.DECLINED: frozenset(step for step in _ALL_BEFORE_READY if step[0] is _S)
        | {(_S, m.Go), (_S, m.Abort)},
        State.REFUSED: frozenset({(_S, m.Abort)}),
    }
)

# After Ready the destination holds a whole copy, so that its no must be final; after
# Go it decides alone, and the source is in doubt.
TROUBLE: Final[Mapping[Role, Mapping[State, State]]] = MappingProxyType(
    {
        _S: dict.fromkeys((*_BEFORE_READY, State.READY), State.ABORTED)
        | {State.ASKED: State.PENDING},
        _D: dict.fromkeys(_BEFORE_READY, State.ABORTED)
        | {State.READY: State.DECLINED, State.ASKED: State.PENDING},
    }
)

MAY_RUN: Final[Mapping[Role, frozenset[State]]] = MappingProxyType(
    {
        # Frozen before it says State. To thaw it later, it gives up first.
        _S: (_BEFORE_READY - {State.STOPPED, State.ENDED})
        | {
            State.REFUSED,
            State.ABORTED,
            State.DECLINED,
            State.RETURNING,
            State.RETURNED,
        },
        # It thaws at Go, once that is in its journal, and says Accepted afterwards.
        _D: frozenset({State.GO, State.ACCEPTED, State.RELEASING, State.RELEASED}),
    }
)

RULES: Final = Rules(TRANSITIONS, ABORTABLE, LATE, TROUBLE, MAY_RUN)

# Nothing more need be said in these, and a Ping is dropped.
OVER: Final = frozenset(
    {
        State.PENDING,
        State.REFUSED,
        State.ABORTED,
        State.RELEASED,
        State.RETURNED,
    },
)


def advance(state: State, speaker: Role, word: Word, rules: Rules = RULES) -> State:
    """The state after ``speaker`` says ``word``.

    Raises:
        LocalProtocolError: there is no such step. Whoever judges the peer's words turns
            it into RemoteProtocolError.
    """
    if word is m.Abort and state in rules.abortable[speaker]:
        return State.ABORTED
    if word in (m.Ping, m.Pong) and state not in OVER:
        return state
    try:
        return rules.transitions[state][speaker, word]
    except KeyError:
        raise LocalProtocolError(
            f"the {speaker.value} may not say {word.__name__} when {state.value}"
        ) from None


def is_late(state: State, speaker: Role, word: Word, rules: Rules = RULES) -> bool:
    """Whether ``speaker`` may have said ``word`` before it heard how we ended it."""
    if word in (m.Ping, m.Pong):
        return state in OVER
    return (speaker, word) in rules.late.get(state, frozenset())


def on_trouble(state: State, role: Role, rules: Rules = RULES) -> State:
    """Where a dead link or a broken rule leaves the side that plays ``role``.

    GO stays GO: the source is in doubt and stays frozen; the destination decides alone.
    """
    return rules.trouble[role].get(state, state)


def is_in_doubt(state: State, role: Role) -> bool:
    """Whether ``role`` cannot know, without another word, where the process lives."""
    return role is Role.SOURCE and state is State.GO
