"""Pages frames, packed: an envelope around their bodies.

    u8  codec       1 none, 2 zstd
    u32 raw length  big-endian; what the rest must become, to the byte
    …   the body, raw or as one zstd frame (RFC 8878)

The peer's zstd frame is judged by its header before anything is unpacked: its content
size must be there and equal to the envelope's. zstandard allocates what the header
says, whatever limit it is given, so the header is what has to be limited.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import zstandard

from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.frames import PAGES_BODY_BYTES_MAX
from transport.messages import Codec

Buffer: TypeAlias = bytes | bytearray | memoryview

_ENVELOPE: Final = struct.Struct(">BI")
ENVELOPE_BYTES: Final = _ENVELOPE.size
RAW_BYTES_MAX: Final = PAGES_BODY_BYTES_MAX - ENVELOPE_BYTES
LEVEL_MAX: Final = 19  # above it windows grow beyond what the other side admits

_CODECS: Final = {codec.value: codec for codec in Codec}
# Content is never longer than a frame, so a window need not be either; the next power
# of two, because that is how a header spells it.
_WINDOW_BYTES_MAX: Final = 2 << 20


class Packer:
    """Puts bodies into envelopes. For one thread: it owns a zstd context."""

    def __init__(self, level: int = 1) -> None:
        assert 1 <= level <= LEVEL_MAX, level
        # The checksum is 4 bytes and finds what a bit flip would pass off as pages.
        self._zstd = zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=True
        )

    def pack(self, buffers: Sequence[Buffer], codec: Codec) -> list[Buffer]:
        """``buffers`` in an envelope, for ``Channel.send_pages``.

        With NONE they are not copied. With ZSTD they are, unless that gains nothing:
        then NONE is used all the same.

        Raises:
            LocalProtocolError: together they are empty or too long.
        """
        raw_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        if not 1 <= raw_bytes <= RAW_BYTES_MAX:
            raise LocalProtocolError(
                f"a pages body of {raw_bytes} bytes; allowed are 1 to {RAW_BYTES_MAX}"
            )
        if codec is Codec.ZSTD:
            # Told the size beforehand, the stream writes it into the header.
            stream = self._zstd.compressobj(size=raw_bytes)
            packed = [stream.compress(buffer) for buffer in buffers]
            packed.append(stream.flush())
            if sum(len(piece) for piece in packed) < raw_bytes:
                return [_ENVELOPE.pack(Codec.ZSTD.value, raw_bytes), *packed]
        return [_ENVELOPE.pack(Codec.NONE.value, raw_bytes), *buffers]


class Unpacker:
    """Takes bodies out of envelopes. For one thread: it owns a zstd context."""

    def __init__(self, allowed: frozenset[Codec] = frozenset(Codec)) -> None:
        self._allowed: Final = allowed
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)

    def unpack(self, body: memoryview) -> memoryview:
        """The body that was packed; with NONE it is a part of ``body`` itself.

        Raises:
            RemoteProtocolError: it is not one envelope with exactly what it says.
        """
        if len(body) <= ENVELOPE_BYTES:
            raise RemoteProtocolError(f"an envelope of {len(body)} bytes")
        number, raw_bytes = _ENVELOPE.unpack(body[:ENVELOPE_BYTES])
        packed = body[ENVELOPE_BYTES:]
        codec = _CODECS.get(number)
        if codec is None or codec not in self._allowed:
            raise RemoteProtocolError(f"codec {number} was not agreed upon")
        if not 1 <= raw_bytes <= RAW_BYTES_MAX:
            raise RemoteProtocolError(f"an envelope for {raw_bytes} bytes")
        if codec is Codec.ZSTD:
            return memoryview(self._decompress(packed, raw_bytes))
        if len(packed) != raw_bytes:
            raise RemoteProtocolError(
                f"an envelope for {raw_bytes} bytes holds {len(packed)}"
            )
        return packed

    def _decompress(self, packed: memoryview, raw_bytes: int) -> bytes:
        try:
            head = zstandard.get_frame_parameters(packed)
        except zstandard.ZstdError as error:
            raise RemoteProtocolError(f"not a zstd frame: {error}") from error
        if head.content_size != raw_bytes:
            # Unknown is 2**64-1 here, and so is never what the envelope says.
            raise RemoteProtocolError(
                f"a zstd frame of {head.content_size} bytes where the envelope says "
                f"{raw_bytes}"
            )
        if head.window_size > _WINDOW_BYTES_MAX:
            raise RemoteProtocolError(f"a zstd window of {head.window_size} bytes")
        if head.dict_id:
            raise RemoteProtocolError(f"zstd dictionary {head.dict_id} is unknown")
        try:
            raw = self._zstd.decompress(
                packed, max_output_size=raw_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise RemoteProtocolError(f"a broken zstd frame: {error}") from error
        if len(raw) != raw_bytes:
            raise RemoteProtocolError(
                f"a zstd frame gave {len(raw)} bytes; the envelope says {raw_bytes}"
            )
        return raw


@dataclass(frozen=True, slots=True)
class Sample:
    """What one batch cost: packing and sending are timed apart."""

    codec: Codec  # the one that was asked for
    bytes_raw: int
    bytes_wire: int
    pack_s: float
    send_s: float


class CompressionChooser:
    """Which codec the next batch should have: the one that takes less time.

    Packing and sending happen one after the other, so a raw byte costs the link's time
    for it, times the ratio, plus the packer's. All three are learned from the batches,
    newer ones counting more; the codec that loses is tried now and then, because pages
    differ from one part of memory to the next.
    """

    _TRY_EVERY: Final = 32  # batches
    _WEIGHT: Final = 0.2  # of the newest sample

    def __init__(self, allowed: frozenset[Codec]) -> None:
        assert allowed, "no codec is allowed"
        self._allowed: Final = allowed
        self._link_s_per_byte: float | None = None  # on the wire
        self._pack_s_per_byte: float | None = None  # raw, with zstd
        self._ratio: float | None = None  # wire to raw, with zstd
        self._chosen = 0

    def choose(self) -> Codec:
        """The codec for the next batch."""
        if len(self._allowed) == 1:
            return next(iter(self._allowed))
        self._chosen += 1
        better = self._better()
        if self._chosen % self._TRY_EVERY == 0:
            return Codec.NONE if better is Codec.ZSTD else Codec.ZSTD
        return better

    def record(self, sample: Sample) -> None:
        """Learn from a batch that was sent."""
        if sample.bytes_raw <= 0 or sample.bytes_wire <= 0:
            return
        self._link_s_per_byte = self._mixed(
            self._link_s_per_byte, sample.send_s / sample.bytes_wire
        )
        if sample.codec is Codec.ZSTD:
            self._pack_s_per_byte = self._mixed(
                self._pack_s_per_byte, sample.pack_s / sample.bytes_raw
            )
            self._ratio = self._mixed(self._ratio, sample.bytes_wire / sample.bytes_raw)

    def _better(self) -> Codec:
        if self._link_s_per_byte is None:
            return Codec.NONE
        if self._pack_s_per_byte is None or self._ratio is None:
            return Codec.ZSTD  # not tried yet
        packed_s = self._pack_s_per_byte + self._ratio * self._link_s_per_byte
        return Codec.ZSTD if packed_s < self._link_s_per_byte else Codec.NONE

    def _mixed(self, old: float | None, new: float) -> float:
        return new if old is None else old + self._WEIGHT * (new - old)
