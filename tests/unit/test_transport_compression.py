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
MB = 1_000_000


class Line:
    """A link with a buffer before it, and packers that share the work.

    Rates are in MB/s; ``packing`` is one packer's, of memory.
    """

    def __init__(self, link: float, packing: float, ratio: float) -> None:
        self.link, self.packing, self.ratio = link, packing, ratio
        self.now_s = 0.0
        self.buffered_mb = 0.0  # not through the link yet
        self.buffer_mb = 4.0

    def carry(self, chooser: CompressionChooser, batches: int) -> float:
        """The share of them that was packed."""
        packed = 0
        for _ in range(batches):
            codec = chooser.choose()
            pack_s, wire_mb = 0.0, 1.0
            if codec is Codec.ZSTD:
                packed += 1
                pack_s, wire_mb = 1.0 / self.packing, self.ratio
            self.pass_time(max(pack_s / 2, 0.0002))
            self.buffered_mb += wire_mb
            if (over_mb := self.buffered_mb - self.buffer_mb) > 0:
                self.pass_time(over_mb / self.link)
            chooser.record(Sample(codec, MB, int(wire_mb * MB), pack_s, self.now_s))
        return packed / batches

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.buffered_mb = max(0.0, self.buffered_mb - self.link * seconds)


def chooser() -> CompressionChooser:
    return CompressionChooser(BOTH, packers=2)


@pytest.mark.parametrize("link", [12.5, 125.0, 250.0])
def test_a_slow_link_is_compressed_for(link: float) -> None:
    """From 100 Mbit/s to 2 Gbit/s, with 250 MB/s a packer and 40 % of the size."""
    line, choosing = Line(link, 250.0, 0.4), chooser()
    line.carry(choosing, 100)
    assert line.carry(choosing, 2000) > 0.9


def test_packers_that_just_keep_up_are_no_reason_to_stop() -> None:
    """The link then looks idle, and its buffers take in some batches at once."""
    line, choosing = Line(125.0, 130.0, 0.45), chooser()
    line.carry(choosing, 100)
    assert line.carry(choosing, 2000) > 0.85


def test_a_fast_link_is_not() -> None:
    """At 2 GB/s the packer is what costs time."""
    line, choosing = Line(2000.0, 250.0, 0.4), chooser()
    assert line.carry(choosing, 1000) < 0.02
    assert line.carry(choosing, 5000) < 0.01


def test_noise_is_not() -> None:
    """Where packing gains nothing it is not done, however slow the link."""
    line, choosing = Line(12.5, 2500.0, 1.0), chooser()
    line.carry(choosing, 100)
    assert line.carry(choosing, 2000) < 0.05


def test_a_change_is_noticed() -> None:
    """A link that slows down is compressed for, and one that is fast again is not."""
    line, choosing = Line(2000.0, 250.0, 0.4), chooser()
    line.carry(choosing, 1000)
    line.link = 100.0
    line.carry(choosing, 4000)
    assert line.carry(choosing, 1000) > 0.85
    line.link = 2000.0
    line.carry(choosing, 4000)
    assert line.carry(choosing, 1000) < 0.1


def test_rounds_of_a_few_batches_add_up() -> None:
    """The time between two rounds is not the link's."""
    line, choosing = Line(12.5, 250.0, 0.4), chooser()
    for _ in range(100):
        choosing.begin()
        line.carry(choosing, 10)
        line.pass_time(10.0)
    choosing.begin()
    assert line.carry(choosing, 10) > 0.5


@pytest.mark.parametrize("codec", Codec)
def test_no_choice_is_no_choice(codec: Codec) -> None:
    """With one codec allowed, it is that one."""
    choosing = CompressionChooser(frozenset({codec}))
    assert Line(100.0, 250.0, 0.4).carry(choosing, 300) == (codec is Codec.ZSTD)
