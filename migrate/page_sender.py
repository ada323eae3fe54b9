"""Batches of pages on their way: packed, paced and sent while the next are read.

Reading another process, packing and sending all let go of the interpreter's lock, so
they overlap: whoever reads hands each batch over, and threads here pack it and put it
on the wire. Batches between two drains have no page in common, so that their order
does not matter; one lock keeps frames whole. Memory is bounded by the buffers that go
round between the reader and these threads.

Whoever uses the channel for anything else drains first: then nobody here touches it.
"""

import os
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Final, NamedTuple, Self

from migrate.options import COMPRESS_AUTO, Codec, Compress
from migrate.patience import patient
from precopy.ids import PAGE_BYTES
from precopy.page_stream import BATCH_PAGES_MAX, PageBatch
from transport import messages as m
from transport.channel import Channel
from transport.compression import Buffer, CompressionChooser, Packer, Sample
from transport.frames import HEADER_BYTES
from transport.throttle import TokenBucket

SEND_S: Final = patient(120.0)  # a batch, to a destination that has to catch up
_PACKERS_MAX: Final = 4
_SPARE_BUFFERS: Final = 2  # one is being read into, one waits
_LEVEL_AUTO: Final = 1
_LEVEL_DEFAULT: Final = 3  # zstd's own
# Under a cap no batch is longer than this, so that what is sent is a stream.
_PACED_S: Final = 0.050
_PACED_PAGES_MIN: Final = 16
_LAST_BATCH_S: Final = 1.0
_LOOK_UP_S: Final = 0.25


def offered(compress: Compress) -> tuple[m.Codec, ...]:
    """The codecs that batches may come in; what does not shrink goes as it is."""
    if compress.codec is Codec.NONE:
        return (m.Codec.NONE,)
    return (m.Codec.NONE, m.Codec.ZSTD)


class _Given(NamedTuple):
    batch: PageBatch
    codec: m.Codec
    buffer: bytearray  # goes back when it is sent


class PageSender:
    """Sends batches on threads of its own; a context manager, leaving ends them."""

    def __init__(
        self,
        channel: Channel,
        pause: Callable[[float], None],
        *,
        compress: Compress = COMPRESS_AUTO,
        rate_bytes_per_s: int | None = None,
    ) -> None:
        """``pause`` waits for so many seconds; what it raises ends the sending.

        ``rate_bytes_per_s`` caps what goes over the wire, where ``begin`` says so.
        """
        self._channel = channel
        self._pause = pause
        self._level = compress.level or (
            _LEVEL_DEFAULT if compress.codec is Codec.ZSTD else _LEVEL_AUTO
        )
        threads = min(_PACKERS_MAX, len(os.sched_getaffinity(0)))
        self._chooser = CompressionChooser(_choice(compress), packers=threads)
        self._choosing = Lock()
        self.batch_pages_max = _batch_pages(rate_bytes_per_s)
        self._bucket = (
            TokenBucket(rate_bytes_per_s, self.batch_pages_max * PAGE_BYTES)
            if rate_bytes_per_s
            else None
        )
        self._wire = Lock()
        self._own_packer = Packer(self._level)  # of the thread that reads
        # One for each thread. What is not packed goes to the first alone: two would
        # only wait for one another, and take turns in the processor's cache.
        self._waiting: list[SimpleQueue[_Given | None]] = [
            SimpleQueue() for _ in range(threads)
        ]
        self._turn = 0
        self._lent: bytearray | None = None  # to the reader, and not sent yet
        self._buffers: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(threads + _SPARE_BUFFERS):
            self._buffers.put(bytearray(self.batch_pages_max * PAGE_BYTES))
        self._under_way = 0
        self._settled = Condition()
        self._trouble: BaseException | None = None
        self._threads = [
            Thread(target=self._work, args=[waiting], name="sender", daemon=True)
            for waiting in self._waiting
        ]
        self._running = False
        self._capped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send nothing more. Where a batch does not get through, the link is ended."""
        if not self._running:
            return
        self._running = False
        self._fail(_Closed())
        for waiting in self._waiting:
            waiting.put(None)
        deadline_s = time.monotonic() + _LAST_BATCH_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self._channel.shutdown()
        for thread in self._threads:
            thread.join()

    def begin(self, *, capped: bool = True) -> None:
        """Batches follow one another from here; not ``capped``: as fast as they go."""
        self._capped = capped
        if not self._running:
            self._running = True
            for thread in self._threads:
                thread.start()
        with self._choosing:
            self._chooser.begin()

    def room(self) -> bytearray:
        """A buffer to read a batch into; waits for one.

        It comes back by ``send``; what is not sent is given out again next time.
        """
        if self._lent is None:
            self._lent = self._buffers.get()
        return self._lent

    def send(self, batch: PageBatch) -> None:
        """Have it sent. Its payload, if it has one, lies in a buffer of ``room``.

        Raises:
            TransportError and whatever ``pause`` raises: what became of an earlier one.
        """
        self._check()
        if batch.data:
            assert batch.payload.obj is self._lent
            buffer, self._lent = self._lent, None
        else:
            # A batch of zeros alone takes one, too: so there are never too many.
            buffer = self._buffers.get()
        assert buffer is not None
        with self._choosing:
            codec = self._chooser.choose()
        self._turn = 0 if codec is m.Codec.NONE else self._turn + 1
        with self._settled:
            self._under_way += 1
        waiting = self._waiting[self._turn % len(self._waiting)]
        waiting.put(_Given(batch, codec, buffer))

    def drain(self) -> None:
        """Wait until all is sent; afterwards the channel is the caller's.

        Raises:
            TransportError and whatever ``pause`` raises: something was not sent.
        """
        with self._settled:
            while self._under_way and self._trouble is None:
                self._settled.wait()
        self._check()

    def send_at_once(self, batch: PageBatch) -> None:
        """Send it on the caller's thread, as fast as the link goes; drained before.

        Raises as ``Channel.send_pages`` does.
        """
        with self._choosing:
            codec = self._chooser.choose()
        buffers = self._own_packer.pack(batch.encode(), codec)
        self._channel.send_pages(buffers, timeout_s=SEND_S)

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    def _fail(self, error: BaseException) -> None:
        with self._settled:
            if self._trouble is None:
                self._trouble = error
            self._settled.notify_all()

    def _work(self, waiting: "SimpleQueue[_Given | None]") -> None:
        packer = Packer(self._level)
        while (given := waiting.get()) is not None:
            try:
                if self._trouble is None:
                    self._send(given.batch, given.codec, packer)
            except BaseException as error:
                # Whatever it is belongs to the thread that hands batches over.
                self._fail(error)
            self._buffers.put(given.buffer)
            given = None
            with self._settled:
                self._under_way -= 1
                if not self._under_way:
                    self._settled.notify_all()

    def _send(self, batch: PageBatch, codec: m.Codec, packer: Packer) -> None:
        began_s = time.monotonic()
        raw = batch.encode()
        buffers = packer.pack(raw, codec)
        pack_s = time.monotonic() - began_s
        wire_bytes = _size(buffers) + HEADER_BYTES
        with self._wire:
            self._check()
            if self._bucket is not None and self._capped:
                self._wait(self._bucket.take(wire_bytes, now_s=time.monotonic()))
            self._channel.send_pages(buffers, timeout_s=SEND_S)
            ended_s = time.monotonic()
        with self._choosing:
            self._chooser.record(Sample(codec, _size(raw), wire_bytes, pack_s, ended_s))

    def _wait(self, seconds: float) -> None:
        """Wait, unless something is wrong meanwhile."""
        while seconds > 0:
            self._check()
            self._pause(min(seconds, _LOOK_UP_S))
            seconds -= _LOOK_UP_S


class _Closed(Exception):
    """Nothing more is to be sent."""


def _choice(compress: Compress) -> frozenset[m.Codec]:
    if compress.codec is Codec.ZSTD:
        return frozenset({m.Codec.ZSTD})
    return frozenset(offered(compress))


def _batch_pages(rate_bytes_per_s: int | None) -> int:
    if rate_bytes_per_s is None:
        return BATCH_PAGES_MAX
    paced = int(rate_bytes_per_s * _PACED_S) // PAGE_BYTES
    return max(_PACED_PAGES_MIN, min(paced, BATCH_PAGES_MAX))


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(memoryview(buffer).nbytes for buffer in buffers)
