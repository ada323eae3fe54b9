"""Envelopes: what is unpacked is exactly what was packed, and never more."""

import random
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from transport.compression import (
    ENVELOPE_BYTES,
    RAW_BYTES_MAX,
    CompressionChooser,
    Packer,
    Sample,
    Unpacker,
)
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.frames import PAGES_BODY_BYTES_MAX
from transport.messages import Codec

PAGES = b"page" * 1024 * 16
NOISE = random.Random(1).randbytes(1 << 16)


def joined(buffers: list[bytes | bytearray | memoryview]) -> memoryview:
    return memoryview(b"".join(buffers))


def envelope(codec: int, raw_bytes: int, body: bytes) -> memoryview:
    return memoryview(struct.pack(">BI", codec, raw_bytes) + body)


@given(
    st.lists(st.binary(max_size=500), min_size=1, max_size=5).filter(any),
    st.sampled_from(Codec),
    st.integers(1, 5),
)
def test_round_trip(pieces: list[bytes], codec: Codec, level: int) -> None:
    """Whatever is packed, in how many pieces and with which codec, comes out."""
    body = joined(Packer(level).pack([*pieces], codec))
    assert bytes(Unpacker().unpack(body)) == b"".join(pieces)


def test_it_compresses() -> None:
    """Repetitive pages become small, in one zstd frame that says its size."""
    body = joined(Packer().pack([PAGES[:100], PAGES[100:]], Codec.ZSTD))
    assert body[0] == Codec.ZSTD.value and len(body) < 1000
    head = zstandard.get_frame_parameters(body[ENVELOPE_BYTES:])
    assert head.content_size == len(PAGES) and head.has_checksum
    assert bytes(Unpacker().unpack(body)) == PAGES


def test_what_does_not_shrink_travels_raw() -> None:
    """Noise is sent as it is, and not copied on either side."""
    buffers = Packer().pack([NOISE], Codec.ZSTD)
    assert buffers[0][0] == Codec.NONE.value and buffers[1] is NOISE
    body = joined(buffers)
    assert Unpacker().unpack(body).obj is body.obj


@pytest.mark.parametrize("codec", Codec)
def test_the_largest_body_fits_a_frame(codec: Codec) -> None:
    """Bodies from 1 byte to the limit can be packed, and always fit one frame."""
    largest = (NOISE * 17)[:RAW_BYTES_MAX]
    body = joined(Packer().pack([largest], codec))
    assert len(body) <= PAGES_BODY_BYTES_MAX
    assert Unpacker().unpack(body) == largest
    for length in (0, RAW_BYTES_MAX + 1):
        with pytest.raises(LocalProtocolError, match=str(length)):
            Packer().pack([bytes(length)], codec)


def zstd(raw: bytes, *, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=size).compress(raw)


def streamed(raw: bytes) -> bytes:
    """A frame whose header does not say how long its content is."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(raw) + stream.flush()


def forged_size(size: int) -> bytes:
    """A frame header that claims ``size`` bytes of content (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


def wide_window(log: int) -> bytes:
    """A frame of 5 bytes with a window of 2**log and its size in eight bytes."""
    return (
        b"\x28\xb5\x2f\xfd\xc0"
        + bytes([(log - 10) << 3])
        + struct.pack("<Q", 5)
        + b"\x29\x00\x00hello"
    )


SKIPPABLE = b"\x50\x2a\x4d\x18\x08\x00\x00\x00" + b"skipped!"
WITH_DICTIONARY = zstandard.ZstdCompressor(
    dict_data=zstandard.train_dictionary(
        1024, [b"%d some sample text %d" % (i, i * i) for i in range(500)]
    )
).compress(b"7 some sample text 49")


@pytest.mark.parametrize(
    "body",
    [
        envelope(0, 1, b"x"),
        envelope(3, 1, b"x"),
        envelope(255, 1, b"x"),
        envelope(1, 0, b""),
        envelope(1, 0, b"x"),
        envelope(1, 1, b"xy"),
        envelope(1, 2, b"x"),
        envelope(1, RAW_BYTES_MAX + 1, bytes(RAW_BYTES_MAX + 1)),
        envelope(1, 2**32 - 1, b"x"),
        memoryview(b""),
        memoryview(b"\x01"),
        memoryview(b"\x01\x00\x00\x00"),
        memoryview(b"\x01\x00\x00\x00\x01"),
        envelope(2, 0, zstd(b"")),
        envelope(2, 5, b""),
        envelope(2, 5, b"hello"),
        envelope(2, 1000, zstd(b"x" * 1000)[:-1]),
        envelope(2, 1000, zstd(b"x" * 1000) + b"\x00"),
        envelope(2, 1000, zstd(b"x" * 1000) + zstd(b"x" * 1000)),
        envelope(2, 2000, zstd(b"x" * 1000) + zstd(b"x" * 1000)),
        envelope(2, 1000, zstd(b"x" * 1001)),
        envelope(2, 1000, zstd(b"x" * 999)),
        envelope(2, 1000, streamed(b"x" * 1000)),
        envelope(2, 1000, zstd(b"x" * 1000, size=False)),
        envelope(2, 8, SKIPPABLE),
        envelope(2, 1000, SKIPPABLE + zstd(b"x" * 1000)),
        envelope(2, 1000, zstd(b"x" * 1000) + SKIPPABLE),
        envelope(2, 21, WITH_DICTIONARY),
        envelope(2, 1 << 20, forged_size(1 << 40)),
        envelope(2, 1 << 20, forged_size(1 << 20)),
        envelope(2, 5, wide_window(31)),
        envelope(2, 5, wide_window(22)),
    ],
    ids=range(32),
)
def test_odd_envelopes_are_refused(body: memoryview) -> None:
    """Anything but one envelope around exactly one frame of exactly its length."""
    with pytest.raises(RemoteProtocolError):
        Unpacker().unpack(body)


def test_a_flipped_bit_is_found() -> None:
    """The checksum turns damage into an error rather than into wrong pages."""
    body = joined(Packer().pack([NOISE[:1000] * 20], Codec.ZSTD))
    for place in range(ENVELOPE_BYTES, len(body)):
        damaged = bytearray(body)
        damaged[place] ^= 0x10
        try:
            raw = Unpacker().unpack(memoryview(damaged))
        except RemoteProtocolError:
            continue
        assert raw == NOISE[:1000] * 20  # some header bits mean nothing


def test_the_narrow_window_is_what_passes() -> None:
    """The frame that the refused wide ones are made from is right in itself."""
    assert bytes(Unpacker().unpack(envelope(2, 5, wide_window(20)))) == b"hello"


@pytest.mark.parametrize(
    "body",
    [
        envelope(2, 1000, zstd(bytes(64 << 20))),
        envelope(2, 1 << 20, forged_size(1 << 40)),
        envelope(2, 1 << 20, forged_size(1 << 30)),
        envelope(2, 5, wide_window(31)),
    ],
    ids=["bomb", "a tebibyte", "a gibibyte", "window"],
)
def test_a_bomb_is_refused_before_memory_is_taken(body: memoryview) -> None:
    """What a frame claims beyond its envelope costs nothing."""
    unpacker = Unpacker()
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            unpacker.unpack(body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_only_what_was_agreed_is_unpacked() -> None:
    """A codec that we did not offer is refused."""
    body = joined(Packer().pack([PAGES], Codec.ZSTD))
    with pytest.raises(RemoteProtocolError, match="agreed"):
        Unpacker(frozenset({Codec.NONE})).unpack(body)


@given(st.binary(max_size=60))
def test_garbage_raises_one_error(body: bytes) -> None:
    """Any bytes are an envelope or RemoteProtocolError."""
    for start in (b"", b"\x02\x00\x00\x00\x10\x28\xb5\x2f\xfd"):
        try:
            Unpacker().unpack(memoryview(start + body))
        except RemoteProtocolError:
            pass


BOTH = frozenset(Codec)


def learned(link_s: float, pack_s: float, ratio: float) -> CompressionChooser:
    """A chooser after batches of 1 MB over such a link; seconds a raw megabyte."""
    chooser = CompressionChooser(BOTH)
    for _ in range(64):
        codec = chooser.choose()
        packed = codec is Codec.ZSTD
        wire = int(1e6 * (ratio if packed else 1.0))
        chooser.record(
            Sample(
                codec, 1_000_000, wire, pack_s if packed else 0.0, link_s * wire / 1e6
            )
        )
    return chooser


def share_of_zstd(chooser: CompressionChooser) -> float:
    return [chooser.choose() for _ in range(96)].count(Codec.ZSTD) / 96


def test_a_slow_link_is_compressed_for() -> None:
    """100 Mbit/s, 1 GB/s zstd, half the size: compress nearly always."""
    assert share_of_zstd(learned(0.08, 0.001, 0.5)) > 0.9


def test_a_fast_link_is_not() -> None:
    """At 2 GB/s the packer is what costs time."""
    assert share_of_zstd(learned(0.0005, 0.001, 0.5)) < 0.1


def test_noise_is_not() -> None:
    """Where packing gains nothing it is not done, however slow the link."""
    assert share_of_zstd(learned(0.08, 0.001, 1.0)) < 0.1


def test_a_change_is_noticed() -> None:
    """The losing codec is tried now and then, so a link that slows down is seen."""
    chooser = learned(0.0005, 0.001, 0.5)
    for _ in range(64):
        codec = chooser.choose()
        wire = 500_000 if codec is Codec.ZSTD else 1_000_000
        chooser.record(Sample(codec, 1_000_000, wire, 0.001, 0.08 * wire / 1e6))
    assert share_of_zstd(chooser) > 0.9


@pytest.mark.parametrize("codec", Codec)
def test_no_choice_is_no_choice(codec: Codec) -> None:
    """With one codec allowed, it is that one."""
    chooser = CompressionChooser(frozenset({codec}))
    assert {chooser.choose() for _ in range(100)} == {codec}
