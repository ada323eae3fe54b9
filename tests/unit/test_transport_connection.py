"""The connection: each word in each state by each side, judged as the table says."""

import itertools
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.transport_samples import OPTIONS, REASON, SAMPLES
from transport import messages as m
from transport.connection import (
    PINGS_UNANSWERED_MAX,
    Buffer,
    Connection,
    choose_version,
)
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.frames import (
    MESSAGE_BODY_BYTES_MAX,
    PAGES_BODY_BYTES_MAX,
    FrameDecoder,
    FrameKind,
)
from transport.states import (
    ABORTABLE,
    LATE,
    OVER,
    TRANSITIONS,
    TROUBLE,
    Role,
    State,
    Step,
    Word,
)

WORDS: list[Word] = [*SAMPLES, m.Pages]


def paths() -> dict[State, tuple[Step, ...]]:
    """The shortest talk that leads to each state."""
    found: dict[State, tuple[Step, ...]] = {State.CONNECTED: ()}
    queue = deque([State.CONNECTED])
    while queue:
        state = queue.popleft()
        steps = dict(TRANSITIONS[state])
        for role in Role:
            if state in ABORTABLE[role]:
                steps[role, m.Abort] = State.ABORTED
        for step, after in steps.items():
            if after not in found:
                found[after] = (*found[state], step)
                queue.append(after)
    return found


PATHS = paths()


def say(connection: Connection, word: Word) -> list[Buffer]:
    if word is m.Pages:
        return connection.send_pages([b"pages"])
    return connection.send(SAMPLES[word])  # type: ignore[index]


def hear(connection: Connection, data: bytes) -> list[m.AnyMessage | m.Pages]:
    heard = []
    for frame in FrameDecoder().feed(data):
        message = connection.receive(frame.kind, frame.body)
        if isinstance(message, m.Pages):
            message = m.Pages(memoryview(bytes(message.body)))
        if message is not None:
            heard.append(message)
    return heard


def pair_in(state: State) -> dict[Role, Connection]:
    """Both sides of a talk that has come to ``state``."""
    sides = {role: Connection(role) for role in Role}
    for speaker, word in PATHS[state]:
        hear(sides[speaker.peer], b"".join(say(sides[speaker], word)))
    assert all(side.state is state for side in sides.values())
    return sides


def raw(word: Word) -> tuple[FrameKind, memoryview]:
    """A frame that says ``word``, whatever the state."""
    if word is m.Pages:
        return FrameKind.PAGES, memoryview(b"pages")
    return FrameKind.MESSAGE, memoryview(m.encode(SAMPLES[word]))  # type: ignore[index]


def expected(state: State, speaker: Role, word: Word) -> State | None:
    """What the tables say, read by another pair of eyes."""
    if word is m.Abort and state in ABORTABLE[speaker]:
        return State.ABORTED
    if word in (m.Ping, m.Pong):
        return None if state in OVER else state
    return TRANSITIONS[state].get((speaker, word))


every_case = pytest.mark.parametrize(
    ("state", "speaker", "word"),
    [
        pytest.param(*case, id=f"{case[0].name}-{case[1].name}-{case[2].__name__}")
        for case in itertools.product(State, Role, WORDS)
    ],
)


def test_every_state_can_be_reached() -> None:
    """There is a talk to each state, so the tests below leave none out."""
    assert set(PATHS) == set(State)


def asked(side: Connection, asker: Role, word: Word) -> None:
    """Before a Pong there is a Ping, where the state still has any."""
    if word is m.Pong and side.state not in OVER:
        if asker is side.role:
            say(side, m.Ping)
        else:
            side.receive(*raw(m.Ping))


@every_case
def test_what_may_be_said(state: State, speaker: Role, word: Word) -> None:
    """We say what the table allows, and otherwise nothing happens but an error."""
    side = pair_in(state)[speaker]
    asked(side, speaker.peer, word)
    after = expected(state, speaker, word)
    assert side.may_say(word) == (after is not None)
    if after is None:
        with pytest.raises(LocalProtocolError, match=f"not say {word.__name__}"):
            say(side, word)
        assert side.state is state
    else:
        assert say(side, word)
        assert side.state is after


@every_case
def test_what_may_be_heard(state: State, speaker: Role, word: Word) -> None:
    """We hear what the table allows, drop what is late, and refuse the rest."""
    side = pair_in(state)[speaker.peer]
    asked(side, speaker.peer, word)
    after = expected(state, speaker, word)
    late = (speaker, word) in LATE.get(state, frozenset()) or (
        word in (m.Ping, m.Pong) and state in OVER
    )
    if after is not None:
        message = side.receive(*raw(word))
        assert type(message) is word
        assert side.state is after
    elif late:
        assert side.receive(*raw(word)) is None
        assert side.state is state
    else:
        with pytest.raises(RemoteProtocolError, match=f"not say {word.__name__}"):
            side.receive(*raw(word))
        assert side.state is state
        with pytest.raises(RemoteProtocolError, match="no longer listening"):
            side.receive(*raw(m.Ping))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", State)
def test_a_lost_link(state: State, role: Role) -> None:
    """A dead link leaves each side where the table says, and deaf."""
    side = pair_in(state)[role]
    after = TROUBLE[role].get(state, state)
    assert side.lost() is after and side.state is after
    assert side.lost() is after
    with pytest.raises(RemoteProtocolError, match="link is lost"):
        side.receive(*raw(m.Ping))


def test_the_source_stays_in_doubt_when_the_link_dies() -> None:
    """After Go a dead link changes nothing: it is not the source's to thaw."""
    assert pair_in(State.GO)[Role.SOURCE].lost() is State.GO


# Sizes around every border: joined with its header, one frame, parts, many parts.
SIZES = (0, 1, (1 << 16) - 100, 1 << 16, (1 << 20) - 8, 1 << 20, (2 << 20) + 12345)


@pytest.mark.parametrize("size", SIZES)
def test_large_messages_travel_in_parts(size: int) -> None:
    """A message of any size arrives whole, and no frame of it is over the limit."""
    sides = pair_in(State.PRECOPY)
    message = m.State(bytes(range(256)) * (size // 256 + 1))
    buffers = sides[Role.SOURCE].send(message)
    assert max(len(buffer) for buffer in buffers) <= MESSAGE_BODY_BYTES_MAX
    assert hear(sides[Role.DESTINATION], b"".join(buffers)) == [message]


@given(st.data())
def test_any_chunking_gives_the_same_messages(data: st.DataObject) -> None:
    """However the bytes of a talk are cut, the same words are heard."""
    sides = pair_in(State.PRECOPY)
    words: list[m.AnyMessage] = [
        m.Layout(0, data.draw(st.binary(max_size=100))),
        m.Ping(1),
        m.State(b"x" * data.draw(st.sampled_from([0, 70_000, 1_100_000]))),
        m.End(0, 0, 0),
    ]
    stream = b"".join(b for word in words for b in sides[Role.SOURCE].send(word))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    borders = sorted({0, len(stream), *cuts})
    decoder = FrameDecoder()
    heard = [
        sides[Role.DESTINATION].receive(frame.kind, frame.body)
        for a, b in itertools.pairwise(borders)
        for frame in decoder.feed(stream[a:b])
    ]
    assert [message for message in heard if message is not None] == words


@given(st.sampled_from(State), st.sampled_from(Role), st.binary(max_size=100))
def test_garbage_raises_one_error(state: State, role: Role, data: bytes) -> None:
    """Whatever bytes come in whatever state: words, or RemoteProtocolError."""
    side = pair_in(state)[role]
    try:
        hear(side, data)
    except RemoteProtocolError:
        pass


@given(st.sampled_from(State), st.sampled_from(Role), st.data())
def test_garbage_in_good_frames_raises_one_error(
    state: State, role: Role, data: st.DataObject
) -> None:
    """The same where the frames are right and only what they hold is not."""
    side = pair_in(state)[role]
    for _ in range(3):
        kind = data.draw(st.sampled_from(FrameKind))
        body = data.draw(st.binary(max_size=50))
        try:
            side.receive(kind, memoryview(body))
        except RemoteProtocolError:
            pass


FULL = memoryview(bytes(MESSAGE_BODY_BYTES_MAX))


def destination() -> Connection:
    return pair_in(State.PRECOPY)[Role.DESTINATION]


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (FrameKind.MESSAGE, 0),
        (FrameKind.MESSAGE, MESSAGE_BODY_BYTES_MAX + 1),
        (FrameKind.MESSAGE_PART, 0),
        (FrameKind.MESSAGE_PART, 1),
        (FrameKind.MESSAGE_PART, MESSAGE_BODY_BYTES_MAX - 1),
        (FrameKind.MESSAGE_PART, MESSAGE_BODY_BYTES_MAX + 1),
        (FrameKind.PAGES, 0),
        (FrameKind.PAGES, PAGES_BODY_BYTES_MAX + 1),
    ],
)
def test_frame_lengths_are_judged_again(kind: FrameKind, length: int) -> None:
    """The connection trusts no caller with lengths; all parts but the last are full."""
    with pytest.raises(RemoteProtocolError):
        destination().receive(kind, memoryview(bytes(length)))


def test_parts_end_at_the_limit() -> None:
    """A message in parts never grows beyond its limit."""
    side = destination()
    for _ in range(m.MESSAGE_BYTES_MAX // MESSAGE_BODY_BYTES_MAX - 1):
        assert side.receive(FrameKind.MESSAGE_PART, FULL) is None
    with pytest.raises(RemoteProtocolError, match="over"):
        side.receive(FrameKind.MESSAGE_PART, FULL)


def test_nothing_comes_between_parts() -> None:
    """Pages in the middle of a message are refused."""
    side = destination()
    assert side.receive(FrameKind.MESSAGE_PART, FULL) is None
    assert side.mid_message
    with pytest.raises(RemoteProtocolError, match="between"):
        side.receive(FrameKind.PAGES, memoryview(b"x"))
    assert not side.mid_message


@pytest.mark.parametrize(
    ("state", "role", "allowed"),
    [
        (State.CONNECTED, Role.SOURCE, False),
        (State.WELCOMED, Role.DESTINATION, False),  # a stranger, and long-winded
        (State.INTRODUCED, Role.DESTINATION, True),
        (State.OFFERED, Role.SOURCE, False),
        (State.PRECOPY, Role.DESTINATION, True),
        (State.STOPPED, Role.DESTINATION, True),
        (State.READY, Role.DESTINATION, False),
        (State.GO, Role.SOURCE, False),
    ],
)
def test_parts_only_where_something_long_may_be_said(
    state: State, role: Role, allowed: bool
) -> None:
    """Memory for parts is spent only in states in which the peer may need them."""
    side = pair_in(state)[role]
    if allowed:
        assert side.receive(FrameKind.MESSAGE_PART, FULL) is None
    else:
        with pytest.raises(RemoteProtocolError, match="nothing long"):
            side.receive(FrameKind.MESSAGE_PART, FULL)


def test_pages_are_not_copied() -> None:
    """What is sent are views of the caller's buffers; what is heard is the frame's."""
    source = pair_in(State.PRECOPY)[Role.SOURCE]
    page = bytearray(4096)
    head, first, second = source.send_pages([page, b"", page])
    assert isinstance(first, memoryview) and first.obj is page
    assert isinstance(second, memoryview) and second.obj is page
    assert bytes(head) == (8192).to_bytes(4, "big") + b"\x03"
    body = memoryview(bytes(10))
    heard = destination().receive(FrameKind.PAGES, body)
    assert isinstance(heard, m.Pages) and heard.body is body


@pytest.mark.parametrize("length", [0, PAGES_BODY_BYTES_MAX + 1])
def test_pages_bodies_are_bounded(length: int) -> None:
    """Nothing, and too much, are our own mistakes and leave everything as it was."""
    side = pair_in(State.PRECOPY)[Role.SOURCE]
    with pytest.raises(LocalProtocolError, match=str(length)):
        side.send_pages([bytes(length)])
    side.send(m.RoundEnd(1, 0, 0, 0))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("state", "speaker", "message", "why"),
    [
        (State.WELCOMED, Role.SOURCE, m.Hello(3, b"x" * 16), "version 3"),
        (State.PRECOPY, Role.SOURCE, m.RoundEnd(2, 0, 0, 0), "round 2"),
        (State.PRECOPY, Role.SOURCE, m.RoundEnd(1, 1, 0, 0), "1 batches"),
        (State.STOPPED, Role.SOURCE, m.End(7, 0, 0), "7 batches"),
        (State.ROUND_ENDED, Role.DESTINATION, m.RoundDone(2, 0, 0, 0), "tallies"),
        (State.ROUND_ENDED, Role.DESTINATION, m.RoundDone(1, 1, 0, 0), "tallies"),
        (State.ROUND_ENDED, Role.DESTINATION, m.RoundDone(1, 0, 1, 0), "tallies"),
        (State.ROUND_ENDED, Role.DESTINATION, m.RoundDone(1, 0, 0, 1), "tallies"),
    ],
)
def test_words_must_fit_those_before(
    ours: bool, state: State, speaker: Role, message: m.AnyMessage, why: str
) -> None:
    """Versions, round numbers and tallies agree with what was said before."""
    sides = pair_in(state)
    if ours:
        with pytest.raises(LocalProtocolError, match=why):
            sides[speaker].send(message)
        assert sides[speaker].state is state
        return
    body = memoryview(m.encode(message))
    with pytest.raises(RemoteProtocolError, match=why):
        sides[speaker.peer].receive(FrameKind.MESSAGE, body)
    assert sides[speaker.peer].state is state


def test_batches_are_counted_for_each_round() -> None:
    """A tally counts the pages frames since the one before it, on both sides."""
    sides = pair_in(State.PRECOPY)
    source, dest = sides[Role.SOURCE], sides[Role.DESTINATION]
    for number, batches in ((1, 3), (2, 0), (3, 1)):
        for _ in range(batches):
            hear(dest, b"".join(source.send_pages([b"page"])))
        hear(dest, b"".join(source.send(m.RoundEnd(number, batches, batches, 5))))
        done = m.RoundDone(number, batches, batches, 5)
        assert hear(source, b"".join(dest.send(done))) == [done]
    hear(dest, b"".join(source.send_pages([b"page"])))
    hear(dest, b"".join(source.send(m.State(b""))))
    hear(dest, b"".join(source.send_pages([b"page"])))
    hear(dest, b"".join(source.send(m.End(2, 2, 5))))
    assert dest.state is State.ENDED


def test_the_transaction_is_known_from_hello_on() -> None:
    """Both sides know the name of the migration."""
    sides = pair_in(State.WELCOMED)
    assert sides[Role.SOURCE].transaction is None
    hear(sides[Role.DESTINATION], b"".join(say(sides[Role.SOURCE], m.Hello)))
    assert {side.transaction for side in sides.values()} == {b"transaction 0001"}


def test_a_malformed_message_changes_nothing() -> None:
    """What cannot be encoded was not said."""
    side = pair_in(State.INTRODUCED)[Role.SOURCE]
    with pytest.raises(LocalProtocolError, match="Offer"):
        side.send(m.Offer(b"", msgspec.structs.replace(OPTIONS, streams=0)))
    assert side.state is State.INTRODUCED


def test_a_broken_peer_can_still_be_told() -> None:
    """After a breach the side that found it may say Abort."""
    side = destination()
    with pytest.raises(RemoteProtocolError):
        side.receive(FrameKind.MESSAGE, memoryview(b"\xc1"))
    assert side.send(m.Abort((REASON,)))
    assert side.state is State.ABORTED and side.is_over


@pytest.mark.parametrize(
    ("lowest", "highest", "chosen"),
    [
        (1, 1, None),
        (1, m.VERSION_MAX, m.VERSION_MAX),
        (1, 9, m.VERSION_MAX),
        (m.VERSION_MAX + 1, 9, None),
    ],
)
def test_the_highest_common_version(
    lowest: int, highest: int, chosen: int | None
) -> None:
    """The highest that both speak, or none."""
    assert choose_version(m.Welcome(lowest, highest, "")) == chosen


def test_pongs_answer_pings_in_order() -> None:
    """A Pong that nobody asked for, or out of order, is a breach."""
    sides = pair_in(State.PRECOPY)
    source, dest = sides[Role.SOURCE], sides[Role.DESTINATION]
    hear(dest, b"".join(source.send(m.Ping(1)) + source.send(m.Ping(2))))
    for wrong in (2, 3):
        with pytest.raises(LocalProtocolError, match=f"Pong {wrong}"):
            dest.send(m.Pong(wrong))
    assert hear(source, b"".join(dest.send(m.Pong(1)))) == [m.Pong(1)]
    with pytest.raises(RemoteProtocolError, match="Pong 1"):
        source.receive(FrameKind.MESSAGE, memoryview(m.encode(m.Pong(1))))


def test_unanswered_pings_are_bounded() -> None:
    """Pings that nobody answers do not pile up."""
    side = destination()
    ping = memoryview(m.encode(m.Ping(1)))
    for _ in range(PINGS_UNANSWERED_MAX):
        side.receive(FrameKind.MESSAGE, ping)
    with pytest.raises(RemoteProtocolError, match="unanswered"):
        side.receive(FrameKind.MESSAGE, ping)
