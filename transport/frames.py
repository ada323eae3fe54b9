"""Frames: how bytes on a link are told apart.

A frame is a big-endian u32 length of its body, one byte that says its kind, and the
body. A body is never empty, and no length, kind or tag is ever zero: a run of zeros
is an error at its first byte.

    00 00 00 03  01  92 0e 07        a MESSAGE of three bytes: Ping(7)

The length is judged before memory is allocated, so five bytes from a stranger never
cost more than ``BODY_BYTES_MAX``.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from transport.errors import LocalProtocolError, RemoteProtocolError

_HEADER: Final = struct.Struct(">IB")
HEADER_BYTES: Final = _HEADER.size

MESSAGE_BODY_BYTES_MAX: Final = 1 << 20
PAGES_BODY_BYTES_MAX: Final = (1 << 20) + (1 << 16)
BODY_BYTES_MAX: Final = max(MESSAGE_BODY_BYTES_MAX, PAGES_BODY_BYTES_MAX)

# The first body buffer: enough for every control message, and all that a peer which
# has not introduced itself costs us.
_FIRST_BUFFER_BYTES: Final = 1 << 12


class FrameKind(Enum):
    """What a body is. Numbers on the wire: none is reused, zero is invalid."""

    MESSAGE = 1  # one whole message, or the last part of one
    MESSAGE_PART = 2  # a part of a message, more follows
    PAGES = 3  # opaque here


_KINDS: Final = {kind.value: kind for kind in FrameKind}

BODY_BYTES_MAX_OF: Final = {
    FrameKind.MESSAGE: MESSAGE_BODY_BYTES_MAX,
    FrameKind.MESSAGE_PART: MESSAGE_BODY_BYTES_MAX,
    FrameKind.PAGES: PAGES_BODY_BYTES_MAX,
}


class Frame(NamedTuple):
    """A frame as received. ``body`` lies in the decoder's buffer, see there."""

    kind: FrameKind
    body: memoryview


def header(kind: FrameKind, body_bytes: int) -> bytes:
    """The bytes that go before a body of that length.

    Raises:
        LocalProtocolError: a body of that length is not allowed.
    """
    if not 1 <= body_bytes <= BODY_BYTES_MAX_OF[kind]:
        raise LocalProtocolError(
            f"a {kind.name} frame of {body_bytes} bytes; "
            f"allowed are 1 to {BODY_BYTES_MAX_OF[kind]}"
        )
    return _HEADER.pack(body_bytes, kind.value)


def parse_header(data: bytes | bytearray | memoryview) -> tuple[FrameKind, int]:
    """Kind and body length, both judged.

    Raises:
        RemoteProtocolError: no such kind, or no such length for it.
    """
    body_bytes, number = _HEADER.unpack(data)
    kind = _KINDS.get(number)
    if kind is None:
        raise RemoteProtocolError(
            f"frame header {bytes(data).hex()}: kind {number} does not exist; "
            "is the peer a migrate agent?"
        )
    if not 1 <= body_bytes <= BODY_BYTES_MAX_OF[kind]:
        raise RemoteProtocolError(
            f"frame header {bytes(data).hex()}: a {kind.name} body of {body_bytes} "
            f"bytes; allowed are 1 to {BODY_BYTES_MAX_OF[kind]}"
        )
    return kind, body_bytes


class FrameDecoder:
    """Bytes in, in any pieces; frames out.

    It owns the memory, so that a socket can receive straight into it: put bytes into
    ``room()``, say with ``filled()`` how many they were. The body of a frame lies in
    one buffer that is used again: it is valid until the next call of ``room()``.

    After RemoteProtocolError the decoder stays where it was; the stream is of no use.
    """

    def __init__(self) -> None:
        self._header = bytearray(HEADER_BYTES)
        self._body = bytearray(_FIRST_BUFFER_BYTES)
        self._kind: FrameKind | None = None  # None: reading the header
        self._wanted_bytes = HEADER_BYTES
        self._filled_bytes = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._kind is not None or self._filled_bytes > 0

    def room(self) -> memoryview:
        """Where the next bytes belong: never empty, never beyond this frame."""
        buffer = self._header if self._kind is None else self._body
        return memoryview(buffer)[self._filled_bytes : self._wanted_bytes]

    def filled(self, count: int) -> Frame | None:
        """``count`` bytes of ``room()`` are there now; the frame if that was the last.

        Raises:
            RemoteProtocolError: the header is not one.
        """
        assert 0 <= count <= self._wanted_bytes - self._filled_bytes, count
        self._filled_bytes += count
        if self._filled_bytes < self._wanted_bytes:
            return None
        if self._kind is None:
            self._kind, self._wanted_bytes = parse_header(self._header)
            self._filled_bytes = 0
            if len(self._body) < self._wanted_bytes:
                # Straight to the largest: the next big frame is not far. A bytearray
                # that somebody still looks into cannot grow, so it is a new one.
                self._body = bytearray(BODY_BYTES_MAX)
            return None
        frame = Frame(self._kind, memoryview(self._body)[: self._wanted_bytes])
        self._kind, self._wanted_bytes, self._filled_bytes = None, HEADER_BYTES, 0
        return frame

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """The frames that ``data`` completes, for callers who have bytes in hand.

        Each is valid until the next one is asked for.
        """
        rest = memoryview(data)
        while rest:
            room = self.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            rest = rest[count:]
            frame = self.filled(count)
            if frame is not None:
                yield frame
