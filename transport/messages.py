"""The messages that two agents exchange, and their bytes.

A message is a msgpack array: its tag, then its fields in the order written here. Arrays
rather than maps: a map may name a key twice, and msgpack readers silently keep the
last. Every field is bounded, none has a default, so nothing may be missing and nothing
added; a new field is a new protocol version.

Tags and numbers are written by hand. Zero is invalid, none is ever used again.

What a process or a page *is* stays opaque here: outlines, layouts, states and the
bodies of pages frames are bytes that migrate and precopy make and judge.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, Self, TypeAlias

import msgspec
from msgspec import Meta

from transport.errors import LocalProtocolError, RemoteProtocolError

VERSION_MIN: Final = 2
VERSION_MAX: Final = 2

MESSAGE_BYTES_MAX: Final = 64 << 20
TEXT_MAX: Final = 1000  # characters
# So many of the longest reasons still fit one frame: 4 bytes a character.
REASONS_MAX: Final = 200
PIDS_MAX: Final = 32_768
FEATURES_MAX: Final = 1000
ROUNDS_MAX: Final = 1000
STREAMS_MAX: Final = 16

# What would move a cursor or turn writing around in the terminal of whoever reads it:
# C0, DEL, C1, line separators and bidirectional controls.
_UNPRINTABLE: Final = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
_NOT_TEXT: Final = re.compile(f"[{_UNPRINTABLE}\ud800-\udfff]")

Text: TypeAlias = Annotated[
    str, Meta(max_length=TEXT_MAX, pattern=rf"\A[^{_UNPRINTABLE}]*\Z")
]
Name: TypeAlias = Annotated[
    str, Meta(max_length=64, pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.:+-]*\Z")
]
_U16: TypeAlias = Annotated[int, Meta(ge=1, le=(1 << 16) - 1)]
_U32: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Nanoseconds: TypeAlias = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
# PID_MAX_LIMIT of 64-bit kernels is 4 Mi (include/linux/threads.h).
_Pid: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 22)]
_Fd: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
_Number: TypeAlias = Annotated[int, Meta(ge=1, le=ROUNDS_MAX)]
_Transaction: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Epoch: TypeAlias = Annotated[bytes, Meta(max_length=16)]
_Large: TypeAlias = Annotated[bytes, Meta(max_length=MESSAGE_BYTES_MAX)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages."""


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what messages are made of."""


def text(raw: str) -> str:
    """``raw`` made fit for a ``Text``: strange characters replaced, cut to length."""
    shown = _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", raw)
    return shown if len(shown) <= TEXT_MAX else shown[: TEXT_MAX - 1] + "…"


class Reason(_Part, frozen=True):
    """One reason why not. ``kind`` names a kind of resource, or "" for none."""

    kind: Annotated[str, Meta(max_length=64, pattern=r"\A[A-Za-z0-9_.:+-]*\Z")]
    pid: _Pid | None
    fd: _Fd | None
    message: Text


Reasons: TypeAlias = Annotated[tuple[Reason, ...], Meta(max_length=REASONS_MAX)]


class PidPolicy(Enum):
    """What the destination does about pids."""

    KEEP = 1  # the same number, or refuse
    ANY = 2  # any number
    NEW_NAMESPACE = 3  # the same number inside a pid namespace of its own
    AUTO = 4  # as KEEP where the number is free, else as NEW_NAMESPACE


class Codec(Enum):
    """How the body of a pages frame is packed."""

    NONE = 1
    ZSTD = 2


class Feature(_Part, frozen=True):
    """A fact about the source's kernel or processor, such as a CPU flag."""

    name: Name
    value: Annotated[str, Meta(max_length=256, pattern=rf"\A[^{_UNPRINTABLE}]*\Z")]


class Options(_Part, frozen=True):
    """What the source wishes, and the facts that the destination compares with its own.

    The clock offsets let it give the process clocks that go on where they stopped
    (time_namespaces(7)): both are that clock minus CLOCK_REALTIME, read in one go.
    """

    codecs: Annotated[tuple[Codec, ...], Meta(min_length=1, max_length=len(Codec))]
    streams: Annotated[int, Meta(ge=1, le=STREAMS_MAX)]  # TCP connections for pages
    tracker: Name
    pid_policy: PidPolicy
    monotonic_minus_realtime_ns: _Nanoseconds
    boottime_minus_realtime_ns: _Nanoseconds
    page_bytes: Annotated[int, Meta(ge=4096, le=1 << 20)]
    machine: Name  # uname(2), such as x86_64
    features: Annotated[tuple[Feature, ...], Meta(max_length=FEATURES_MAX)]

    def __post_init__(self) -> None:
        if len(set(self.codecs)) != len(self.codecs):
            raise ValueError("a codec is listed twice")
        if len({feature.name for feature in self.features}) != len(self.features):
            raise ValueError("a feature is listed twice")
        if self.page_bytes & (self.page_bytes - 1):
            raise ValueError(f"a page of {self.page_bytes} bytes is no power of two")


class Welcome(Message, frozen=True, tag=1):
    """D→S, the first word: the versions the destination speaks, both included."""

    version_min: _U16
    version_max: _U16
    agent: Text  # for logs, such as "migrate 0.1.0"

    def __post_init__(self) -> None:
        if self.version_min > self.version_max:
            raise ValueError(
                f"versions {self.version_min} to {self.version_max} are none"
            )

    @classmethod
    def ours(cls, agent: str) -> Self:
        """The one to send."""
        return cls(VERSION_MIN, VERSION_MAX, agent)


class Hello(Message, frozen=True, tag=2):
    """S→D: the version spoken from here on, and the name of this migration.

    ``transaction`` is 16 random bytes that the source has just drawn.
    """

    version: _U16
    transaction: _Transaction


class Offer(Message, frozen=True, tag=3):
    """S→D: what would come. ``outline`` is the tree without its memory."""

    outline: _Large
    options: Options


class OfferAccepted(Message, frozen=True, tag=4):
    """D→S: the skeleton stands, empty and frozen.

    ``pids`` are the processes of the outline, in its order, as the destination's root
    pid namespace sees them.
    """

    pids: Annotated[tuple[_Pid, ...], Meta(min_length=1, max_length=PIDS_MAX)]


class Refused(Message, frozen=True, tag=5):
    """D→S: no. Nothing was touched, nothing of the tree is there."""

    reasons: Reasons


class Layout(Message, frozen=True, tag=6):
    """S→D: the address space of the process at ``process`` in the tree has changed.

    In force for the pages frames that follow it.
    """

    process: _U32
    change: _Large


class RoundEnd(Message, frozen=True, tag=7):
    """S→D: a pre-copy round is over; its tally.

    ``number`` counts rounds from 1. ``batches`` is the number of pages frames since the
    last round ended (the connection checks it); ``pages`` and ``bytes`` are what they
    held, zero pages included in ``pages`` only.
    """

    number: _Number
    batches: _Count
    pages: _Count
    bytes: _Count


class RoundDone(Message, frozen=True, tag=8):
    """D→S: all of it is in the skeleton's memory; the tally as counted there.

    The connection checks that it is the tally of the RoundEnd.
    """

    number: _Number
    batches: _Count
    pages: _Count
    bytes: _Count


class State(Message, frozen=True, tag=9):
    """S→D: the tree is frozen; all that is not memory. Downtime has begun."""

    payload: _Large


class End(Message, frozen=True, tag=10):
    """S→D: everything has been sent. The tally since the last RoundEnd, as there."""

    batches: _Count
    pages: _Count
    bytes: _Count


class Ready(Message, frozen=True, tag=11):
    """D→S: all is in place, verified and frozen; nothing is left that can fail.

    ``digest`` is over what was restored, empty when none was asked for. ``epoch`` is
    the identity of the destination's journal, empty while it keeps none.
    ``restore_ns``: from the arrival of End to this, for the report.
    """

    digest: Annotated[bytes, Meta(max_length=64)]
    epoch: _Epoch
    restore_ns: _Count


class Go(Message, frozen=True, tag=12):
    """S→D: it is yours. From the moment this may leave, the source never thaws it."""


class Accepted(Message, frozen=True, tag=13):
    """D→S: it was taken over, and runs here; ``died``: it did, and ended with its host.

    ``epoch`` is that of the journal in which this stands. ``resume_ns``: from the
    arrival of Go to the thaw, 0 where that is not remembered.
    """

    transaction: _Transaction
    epoch: _Epoch
    died: bool
    resume_ns: _Count


class Declined(Message, frozen=True, tag=14):
    """D→S: it never ran here and never will; the copy is gone. As this journal says:
    one of another ``epoch`` knows of nothing.
    """

    transaction: _Transaction
    epoch: _Epoch
    reasons: Reasons


class Abort(Message, frozen=True, tag=15):
    """Either way: I give up. Only while the source alone may run it."""

    reasons: Reasons


class Fin(Message, frozen=True, tag=16):
    """S→D: I know how it ended; you may forget this migration."""


class FinAck(Message, frozen=True, tag=17):
    """D→S: forgotten."""


class Ping(Message, frozen=True, tag=18):
    """Either way: are you there? Answered by a Pong of the same number."""

    number: _U32


class Pong(Message, frozen=True, tag=19):
    """The answer to a Ping."""

    number: _U32


class Query(Message, frozen=True, tag=20):
    """S→D, instead of Hello: what became of that migration? On a new connection, after
    the one on which Go was said was lost.
    """

    version: _U16
    transaction: _Transaction


class NotYet(Message, frozen=True, tag=21):
    """D→S: it is not settled. Ask again on another connection."""

    transaction: _Transaction


@dataclass(frozen=True, slots=True)
class Pages:
    """The body of a pages frame. Not a message, but said by a role in a state as one.

    ``body`` is valid until the next receive.
    """

    body: memoryview


AnyMessage: TypeAlias = (
    Welcome
    | Hello
    | Offer
    | OfferAccepted
    | Refused
    | Layout
    | RoundEnd
    | RoundDone
    | State
    | End
    | Ready
    | Go
    | Accepted
    | Declined
    | Abort
    | Fin
    | FinAck
    | Ping
    | Pong
    | Query
    | NotYet
)

# These may be longer than a frame and then travel in parts.
LARGE: Final[frozenset[type[Message]]] = frozenset({Offer, Layout, State})

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(
    AnyMessage
)


def encode(message: AnyMessage) -> bytes:
    """The bytes of ``message``, at most ``MESSAGE_BYTES_MAX``.

    Raises:
        LocalProtocolError: a field is of a wrong type or beyond its bounds.
    """
    name = type(message).__name__
    try:
        data = _ENCODER.encode(message)
        # msgspec checks what it decodes, not what it is given. Better found out here
        # than by a peer, who would call it an attack.
        _DECODER.decode(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{name} cannot be sent: {error}") from error
    if len(data) > MESSAGE_BYTES_MAX:
        raise LocalProtocolError(
            f"{name} has {len(data)} bytes; at most {MESSAGE_BYTES_MAX} may be sent"
        )
    return data


def decode(data: bytes | bytearray | memoryview) -> AnyMessage:
    """The message whose bytes are exactly ``data``.

    Raises:
        RemoteProtocolError: they are not one message within its bounds.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise RemoteProtocolError(f"a message of {len(data)} bytes is too long")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(
            f"a message of {len(data)} bytes, beginning {bytes(data[:16]).hex()}: "
            f"{error}"
        ) from error
