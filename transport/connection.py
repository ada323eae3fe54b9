"""One side of the talk, without any input or output.

It turns messages into frames and frames into messages, keeps the state, and judges
both sides by the tables in ``states``. It knows neither sockets nor time.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias

from transport import messages as m
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.frames import (
    MESSAGE_BODY_BYTES_MAX,
    PAGES_BODY_BYTES_MAX,
    FrameKind,
    header,
)
from transport.states import (
    LATE,
    OVER,
    TRANSITIONS,
    Role,
    State,
    Word,
    advance,
    is_late,
    on_trouble,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

# A message that fits is joined with its header: one buffer, one segment on the wire.
_JOIN_BYTES_MAX: Final = 1 << 16

# Pings are answered at once; a peer that is so many ahead is not asking any more.
PINGS_UNANSWERED_MAX: Final = 16


class Connection:
    """The talk as one side sees it.

    After RemoteProtocolError it hears nothing more; it may still say what the state
    allows, which is how the peer is told.
    """

    def __init__(self, role: Role) -> None:
        self.role: Final = role
        self._state = State.CONNECTED
        self._parts: bytearray | None = None
        self._broken: str | None = None
        self._versions: range | None = None
        self._batches = 0  # pages frames since the last tally
        self._round: m.RoundEnd | None = None  # the last that was said
        self._unanswered: dict[Role, deque[int]] = {who: deque() for who in Role}
        self.transaction: bytes | None = None  # known from Hello on

    @property
    def state(self) -> State:
        """How far we have come."""
        return self._state

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be said."""
        return self._state in OVER

    @property
    def mid_message(self) -> bool:
        """Whether parts of a message have arrived, and the last has not."""
        return self._parts is not None

    def may_say(self, word: Word) -> bool:
        """Whether the state lets us say ``word`` now."""
        try:
            advance(self._state, self.role, word)
        except LocalProtocolError:
            return False
        return True

    def send(self, message: m.AnyMessage) -> list[Buffer]:
        """The bytes that say ``message``, to be sent one after another.

        The state is the new one at once: what may have left counts as said.

        Raises:
            LocalProtocolError: not now, or not this; nothing has changed.
        """
        after = advance(self._state, self.role, type(message))
        body = m.encode(message)
        if len(body) > MESSAGE_BODY_BYTES_MAX and type(message) not in m.LARGE:
            raise LocalProtocolError(
                f"{type(message).__name__} has {len(body)} bytes and must fit one frame"
            )
        self._check(self.role, message, LocalProtocolError)
        self._note(self.role, message, after)
        return _frames_of(body)

    def send_pages(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """The bytes that carry ``buffers`` as one pages frame; they are not copied.

        Raises:
            LocalProtocolError: not now, or too much or nothing at all.
        """
        after = advance(self._state, self.role, m.Pages)
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        head = header(FrameKind.PAGES, sum(len(view) for view in views))
        self._state = after
        self._batches += 1
        return [head, *(view for view in views if view)]

    def receive(
        self, kind: FrameKind, body: memoryview
    ) -> m.AnyMessage | m.Pages | None:
        """What the peer said with this frame; None if that is not known yet, or late.

        ``Pages.body`` is ``body`` itself; messages keep nothing of it.

        Raises:
            RemoteProtocolError: the peer may not say this, or not now.
        """
        if self._broken is not None:
            raise RemoteProtocolError(f"no longer listening: {self._broken}")
        try:
            return self._receive(kind, body)
        except RemoteProtocolError as error:
            self._broken = str(error)
            self._parts = None
            raise

    def lost(self) -> State:
        """The link is dead, or not to be trusted: the state in which that leaves us."""
        self._broken = self._broken or "the link is lost"
        self._parts = None
        self._state = on_trouble(self._state, self.role)
        return self._state

    def _receive(
        self, kind: FrameKind, body: memoryview
    ) -> m.AnyMessage | m.Pages | None:
        if not body:
            raise RemoteProtocolError(f"an empty {kind.name} frame")
        if kind is FrameKind.PAGES:
            return self._receive_pages(body)
        if len(body) > MESSAGE_BODY_BYTES_MAX:
            raise RemoteProtocolError(f"a {kind.name} frame of {len(body)} bytes")
        if kind is FrameKind.MESSAGE_PART:
            self._keep_part(body)
            return None
        if self._parts is None:
            message = m.decode(body)
        else:
            # Parts stop one frame short of the limit: the last always fits.
            self._parts += body
            message = m.decode(self._parts)
            self._parts = None
        after = self._hear(type(message))
        if after is None:
            return None
        self._check(self.role.peer, message, RemoteProtocolError)
        self._note(self.role.peer, message, after)
        return message

    def _receive_pages(self, body: memoryview) -> m.Pages | None:
        if self._parts is not None:
            raise RemoteProtocolError("a PAGES frame between the parts of a message")
        if len(body) > PAGES_BODY_BYTES_MAX:
            raise RemoteProtocolError(f"a PAGES frame of {len(body)} bytes")
        after = self._hear(m.Pages)
        if after is None:
            return None
        self._state = after
        self._batches += 1
        return m.Pages(body)

    def _keep_part(self, body: memoryview) -> None:
        """Collect a part, if any message worth parts may be said at all."""
        if len(body) != MESSAGE_BODY_BYTES_MAX:
            raise RemoteProtocolError(
                f"a part of a message has {len(body)} bytes; all but the last have "
                f"{MESSAGE_BODY_BYTES_MAX}"
            )
        speaker = self.role.peer
        steps = (*TRANSITIONS[self._state], *LATE.get(self._state, ()))
        if not any(who is speaker and word in m.LARGE for who, word in steps):
            raise RemoteProtocolError(
                f"the {speaker.value} may say nothing long when {self._state.value}"
            )
        held = self._parts if self._parts is not None else bytearray()
        if len(held) + len(body) >= m.MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"a message over {m.MESSAGE_BYTES_MAX} bytes")
        held += body
        self._parts = held

    def _hear(self, word: Word) -> State | None:
        """The state after the peer said ``word``; None if it is too late to matter."""
        speaker = self.role.peer
        try:
            return advance(self._state, speaker, word)
        except LocalProtocolError as error:
            if is_late(self._state, speaker, word):
                return None
            raise RemoteProtocolError(str(error)) from None

    def _check(
        self,
        speaker: Role,
        message: m.AnyMessage,
        error: type[LocalProtocolError | RemoteProtocolError],
    ) -> None:
        """What can be known wrong about ``message`` from those before it."""
        match message:
            case m.Hello(version=version) | m.Query(version=version):
                assert self._versions is not None, "Welcome comes before Hello"
                if version not in self._versions:
                    raise error(
                        f"{type(message).__name__} chose version {version}; Welcome "
                        f"offered {self._versions.start} to {self._versions.stop - 1}"
                    )
            case m.Accepted() | m.Declined() | m.NotYet():
                if self.transaction not in (None, message.transaction):
                    raise error(f"{type(message).__name__} speaks of another migration")
            case m.RoundEnd(number=number):
                expected = 1 if self._round is None else self._round.number + 1
                if number != expected:
                    raise error(f"round {number} ended; {expected} was under way")
                self._check_batches(message, error)
            case m.RoundDone():
                assert self._round is not None, "RoundEnd comes before RoundDone"
                if _tally(message) != _tally(self._round):
                    raise error(f"the tallies differ: {self._round} but {message}")
            case m.End():
                self._check_batches(message, error)
            case m.Ping():
                if len(self._unanswered[speaker]) >= PINGS_UNANSWERED_MAX:
                    raise error(f"{PINGS_UNANSWERED_MAX} pings are unanswered")
            case m.Pong(number=number):
                asked = self._unanswered[speaker.peer]
                if not asked or number != asked[0]:
                    raise error(f"Pong {number} answers no ping")
            case _:
                pass

    def _check_batches(
        self,
        message: m.RoundEnd | m.End,
        error: type[LocalProtocolError | RemoteProtocolError],
    ) -> None:
        if message.batches != self._batches:
            raise error(
                f"{type(message).__name__} tells of {message.batches} batches; "
                f"{self._batches} pages frames have gone by since the last tally"
            )

    def _note(self, speaker: Role, message: m.AnyMessage, after: State) -> None:
        """``message`` was said: remember what later ones are checked against."""
        self._state = after
        match message:
            case m.Welcome():
                self._versions = range(message.version_min, message.version_max + 1)
            case m.Hello() | m.Query():
                self.transaction = message.transaction
            case m.RoundEnd():
                self._round = message
                self._batches = 0
            case m.Ping():
                self._unanswered[speaker].append(message.number)
            case m.Pong():
                self._unanswered[speaker.peer].popleft()
            case _:
                pass


def choose_version(welcome: m.Welcome) -> int | None:
    """The highest version that both sides speak, or None."""
    version = min(welcome.version_max, m.VERSION_MAX)
    return version if version >= max(welcome.version_min, m.VERSION_MIN) else None


def _tally(message: m.RoundEnd | m.RoundDone) -> tuple[int, int, int, int]:
    return message.number, message.batches, message.pages, message.bytes


def _frames_of(body: bytes) -> list[Buffer]:
    """A message's bytes, cut into frames."""
    if len(body) <= _JOIN_BYTES_MAX:
        return [header(FrameKind.MESSAGE, len(body)) + body]
    view = memoryview(body)
    buffers: list[Buffer] = []
    while len(view) > MESSAGE_BODY_BYTES_MAX:
        part, view = view[:MESSAGE_BODY_BYTES_MAX], view[MESSAGE_BODY_BYTES_MAX:]
        buffers += [header(FrameKind.MESSAGE_PART, len(part)), part]
    return [*buffers, header(FrameKind.MESSAGE, len(view)), view]
