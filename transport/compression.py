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
    """What became of one batch."""

    codec: Codec  # the one that was asked for
    bytes_raw: int
    bytes_wire: int
    pack_s: float  # how long one packer took
    ended_s: float  # when it was sent, on any clock that never goes back


class CompressionChooser:
    """Which codec the next batch should have: the one that gets more memory across.

    What counts is memory per second from end to end, measured over some batches at a
    time, because packing, the link and the other side's work overlap. Without packing,
    now and then one batch is packed all the same: how fast that went and what it gained
    says whether a trial is worth it. While packing, not to pack is tried. Trials that
    fail become rare. Whenever batches begin to go unpacked, the buffers of the link
    take in the first of them, and how fast that goes says nothing.
    """

    _WINDOW_BYTES: Final = 8 << 20
    _WINDOW_S: Final = 0.020  # no shorter,
    _WINDOW_MAX_S: Final = 0.050  # and over a slow link no longer
    _SETTLE_BYTES: Final = 8 << 20
    _SETTLE_MAX_S: Final = 0.100
    _GAIN_MIN: Final = 1.05
    # Packers compete with all else for the processors.
    _PROMISE_MIN: Final = 1.5
    _WAIT_WON: Final = 16  # windows between two trials, after one that went well,
    _WAIT_MAX: Final = 64  # and after many that did not
    _WEIGHT: Final = 0.3  # of the newest measurement

    def __init__(self, allowed: frozenset[Codec], *, packers: int = 1) -> None:
        """``packers`` batches are packed at the same time."""
        assert allowed, "no codec is allowed"
        assert packers > 0, packers
        self._free: Final = len(allowed) > 1
        self._packers: Final = packers
        self._codec = Codec.NONE if self._free else next(iter(allowed))
        self._rates: dict[Codec, float] = {}  # of memory
        self._on_trial = False
        self._sampling = False
        self._wait = 1
        self._windows_left = 1  # until the next trial
        self._settling_bytes = self._SETTLE_BYTES
        self._window_bytes = 0
        self._since_s: float | None = None

    def begin(self) -> None:
        """Batches follow one another from here; what was before says nothing of it."""
        self._restart()

    def choose(self) -> Codec:
        """The codec for the next batch."""
        if self._sampling:
            self._sampling = False
            return Codec.ZSTD
        return self._codec

    def record(self, sample: Sample) -> None:
        """Learn from a batch that was sent."""
        if not self._free or not sample.bytes_raw:
            return
        if sample.codec is Codec.ZSTD and self._codec is Codec.NONE:
            self._judge(sample)
        if self._since_s is None:
            self._since_s = sample.ended_s
            return
        passed_s = sample.ended_s - self._since_s
        if self._settling_bytes > 0 and passed_s < self._SETTLE_MAX_S:
            self._settling_bytes -= sample.bytes_wire
            if self._settling_bytes <= 0:
                self._since_s = sample.ended_s
            return
        self._settling_bytes = 0
        self._window_bytes += sample.bytes_raw
        full = self._window_bytes >= self._WINDOW_BYTES and passed_s >= self._WINDOW_S
        if full or passed_s >= self._WINDOW_MAX_S:
            rate = self._window_bytes / passed_s
            self._since_s, self._window_bytes = sample.ended_s, 0
            self._measured(rate)

    def _judge(self, sample: Sample) -> None:
        """A batch was packed to see what that gives: try it for longer?"""
        if self._on_trial or Codec.NONE not in self._rates:
            return
        rate = self._rates[Codec.NONE]
        packed_rate = self._packers * sample.bytes_raw / max(sample.pack_s, 1e-9)
        link_rate = rate * sample.bytes_raw / sample.bytes_wire
        if packed_rate > self._PROMISE_MIN * rate and link_rate > self._GAIN_MIN * rate:
            self._try(Codec.ZSTD)
        else:
            self._wait_longer()

    def _measured(self, rate: float) -> None:
        codec = self._codec
        if self._on_trial:
            self._on_trial = False
            self._rates[codec] = rate
            other = Codec.NONE if codec is Codec.ZSTD else Codec.ZSTD
            if rate > self._GAIN_MIN * self._rates[other]:
                self._wait = self._windows_left = self._WAIT_WON
                return
            self._wait_longer()
            self._switch(other)
            return
        old = self._rates.get(codec, rate)
        self._rates[codec] = old + self._WEIGHT * (rate - old)
        self._windows_left -= 1
        if self._windows_left > 0:
            return
        if codec is Codec.NONE:
            self._sampling = True
            self._windows_left = self._wait
        else:
            self._try(Codec.NONE)

    def _try(self, codec: Codec) -> None:
        self._on_trial = True
        self._switch(codec)

    def _wait_longer(self) -> None:
        self._wait = min(2 * self._wait, self._WAIT_MAX)
        self._windows_left = self._wait

    def _switch(self, codec: Codec) -> None:
        self._codec = codec
        self._restart()

    def _restart(self) -> None:
        """Measure anew, with the next batch."""
        packs = self._codec is Codec.ZSTD
        self._settling_bytes = 0 if packs else self._SETTLE_BYTES
        self._window_bytes = 0
        self._since_s = None
