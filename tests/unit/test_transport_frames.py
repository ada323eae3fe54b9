"""Frames: any bytes in any pieces are told apart, or refused at the header."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.frames import (
    BODY_BYTES_MAX_OF,
    HEADER_BYTES,
    FrameDecoder,
    FrameKind,
    header,
    parse_header,
)

frames = st.lists(
    st.tuples(st.sampled_from(FrameKind), st.binary(min_size=1, max_size=300)),
    max_size=6,
)


def wire(contents: list[tuple[FrameKind, bytes]]) -> bytes:
    return b"".join(header(kind, len(body)) + body for kind, body in contents)


def decoded(pieces: list[bytes]) -> list[tuple[FrameKind, bytes]]:
    decoder = FrameDecoder()
    return [
        (frame.kind, bytes(frame.body))
        for piece in pieces
        for frame in decoder.feed(piece)
    ]


@given(frames, st.lists(st.integers(0, 2000)))
def test_any_chunking_gives_the_same_frames(
    contents: list[tuple[FrameKind, bytes]], cuts: list[int]
) -> None:
    """However the bytes are cut, the frames are those that were sent."""
    data = wire(contents)
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(borders)]
    assert decoded(pieces) == contents


def test_the_example_in_the_documentation() -> None:
    """A frame begins with its length as a big-endian u32, then its kind."""
    assert header(FrameKind.MESSAGE, 3) == bytes.fromhex("00 00 00 03 01")


@pytest.mark.parametrize("kind", FrameKind)
def test_length_limits(kind: FrameKind) -> None:
    """A body has 1 byte to the limit of its kind, on both sides of the wire."""
    limit = BODY_BYTES_MAX_OF[kind]
    for length in (1, limit):
        assert parse_header(header(kind, length)) == (kind, length)
    for length in (0, limit + 1):
        with pytest.raises(LocalProtocolError, match=str(length)):
            header(kind, length)
        with pytest.raises(RemoteProtocolError, match=str(length)):
            parse_header(length.to_bytes(4, "big") + bytes([kind.value]))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\x00",
        b"\x00\x00\x00\x01\x04",
        b"\x00\x00\x00\x01\xff",
        b"\xff\xff\xff\xff\x01",
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS ClientHello
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    """Unknown kinds, lengths beyond the limits and other protocols end at byte five."""
    with pytest.raises(RemoteProtocolError, match="frame header"):
        decoded([data])


@given(st.binary(max_size=64))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    """Any bytes are frames, the beginning of one, or RemoteProtocolError."""
    try:
        decoded([data])
    except RemoteProtocolError:
        pass


def test_a_length_is_judged_before_memory_is_taken() -> None:
    """A header that asks for 4 GiB, or for 1 MiB of nothing, costs at most a body."""
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            list(decoder.feed(b"\xff\xff\xff\xff\x03"))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
        list(FrameDecoder().feed(header(FrameKind.PAGES, 1 << 20)))
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_large_bodies_share_one_buffer() -> None:
    """The buffer of one large frame serves the next: nothing is allocated for it."""
    decoder = FrameDecoder()
    body = b"x" * (1 << 20)
    first, second = (
        next(decoder.feed(wire([(FrameKind.PAGES, body)]))).body.obj for _ in range(2)
    )
    assert first is second


def test_mid_frame_tells_a_border_from_a_cut() -> None:
    """Only between frames is the decoder not in the middle of one."""
    data = wire([(FrameKind.PAGES, b"abc")])
    for cut in range(1, len(data)):
        decoder = FrameDecoder()
        assert list(decoder.feed(data[:cut])) == []
        assert decoder.mid_frame
        assert len(list(decoder.feed(data[cut:]))) == 1
        assert not decoder.mid_frame


def test_room_never_reaches_into_the_next_frame() -> None:
    """What a socket is told to fill is the rest of the header or of the body."""
    decoder = FrameDecoder()
    assert len(decoder.room()) == HEADER_BYTES
    decoder.room()[:] = header(FrameKind.PAGES, 9)
    assert decoder.filled(HEADER_BYTES) is None
    assert len(decoder.room()) == 9
    assert decoder.filled(4) is None
    assert len(decoder.room()) == 5
