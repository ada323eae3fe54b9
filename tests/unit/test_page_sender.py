"""All batches arrive, whatever is packed and paced; and a failure is told at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from migrate.options import Compress, parse_compress
from migrate.page_sender import PageSender, offered
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from precopy.page_stream import BatchLimits, PageBatch, batches
from tests.unit.transport_samples import OPTIONS
from transport import messages as m
from transport.channel import Channel
from transport.compression import Unpacker
from transport.errors import TransportError
from transport.states import Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

LIMITS = BatchLimits(processes_max=1)


class Pauses:
    """How long was waited, without waiting."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds


class Destination:
    """Takes what comes, until the round ends."""

    def __init__(self, end: socket.socket) -> None:
        self.pages: dict[int, bytes] = {}
        self.codecs: set[int] = set()
        self._channel = Channel(end, Role.DESTINATION)
        self._unpacker = Unpacker()
        self._thread = Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        try:
            self._channel.send(m.Welcome.ours("test"))
            self._channel.expect(m.Hello)
            self._channel.expect(m.Offer)
            self._channel.send(m.OfferAccepted((1,)))
            while isinstance(message := self._channel.receive(), m.Pages):
                self._take(message.body)
            assert isinstance(message, m.RoundEnd)
            self._channel.send(m.RoundDone(1, message.batches, 0, 0))
        except TransportError:
            return  # the source has had enough

    def _take(self, body: memoryview) -> None:
        self.codecs.add(body[0])
        batch = PageBatch.decode(self._unpacker.unpack(body), LIMITS)
        for n, address in enumerate(batch.data.addresses()):
            page = batch.payload[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]
            self.pages[address // PAGE_BYTES] = bytes(page)


@contextmanager
def talk(
    compress: Compress, pause: Callable[[float], None], rate: int | None = None
) -> Iterator[tuple[Channel, PageSender, Destination]]:
    """A source among whose batches are to be sent, and what receives them."""
    ours, theirs = socket.socketpair()
    with ExitStack() as undo:
        channel = undo.enter_context(Channel(ours, Role.SOURCE))
        destination = Destination(theirs)
        undo.callback(destination.join)
        undo.callback(channel.shutdown)
        channel.expect(m.Welcome)
        channel.send(m.Hello(m.VERSION_MAX, bytes(16)))
        channel.send(m.Offer(b"outline", OPTIONS))
        channel.expect(m.OfferAccepted)
        sender = PageSender(channel, pause, compress=compress, rate_bytes_per_s=rate)
        yield channel, undo.enter_context(sender), destination


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE_BYTES // 8)


def batch_in(buffer: bytearray, numbers: Sequence[int]) -> PageBatch:
    view = memoryview(buffer)[: len(numbers) * PAGE_BYTES]
    view[:] = b"".join(content(n) for n in numbers)
    return PageBatch(0, pages(*numbers), PageSet.EMPTY, view)


def pages(*numbers: int) -> PageSet:
    return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in numbers)


@pytest.mark.parametrize("compress", ["none", "auto", "zstd", "zstd:5"])
def test_all_that_was_sent_arrives(compress: str) -> None:
    """With buffers that are used again and again, and zeros between."""
    asked = parse_compress(compress)
    with talk(asked, Pauses()) as (channel, sender, destination):
        sender.begin()
        for first in range(0, 6400, 64):
            sender.send(batch_in(sender.room(), range(first, first + 64)))
            nothing = memoryview(b"")
            sender.send(PageBatch(0, PageSet.EMPTY, pages(first + 9000), nothing))
        sender.drain()
        channel.send(m.RoundEnd(1, 200, 0, 0))
        channel.expect(m.RoundDone)
        assert destination.pages == {n: content(n) for n in range(6400)}
        agreed = {codec.value for codec in offered(asked)}
        assert destination.codecs <= agreed
        assert (m.Codec.ZSTD.value in destination.codecs) or "zstd" not in compress


class Blank:
    """A memory of zeros."""

    def read_runs(self, pages: PageSet, buffer: Buffer) -> PageSet:
        memoryview(buffer)[: pages.bytes] = bytes(pages.bytes)
        return pages


def test_a_buffer_that_nothing_was_found_for_is_not_lost() -> None:
    """Rounds that end with pages of zeros, more than there are buffers."""
    with talk(parse_compress("none"), Pauses()) as (_, sender, _):
        sender.begin()
        for _ in range(20):
            everything = pages(*range(300))
            for batch in batches(
                Blank(),
                0,
                everything,
                sent=everything,
                anonymous=everything,
                batch_pages_max=sender.batch_pages_max,
                room=sender.room,
            ):
                sender.send(batch)
            sender.drain()


def test_under_a_cap_it_waits_for_what_it_has_sent() -> None:
    """No less than the bytes take at that rate, but for the first of them."""
    pauses = Pauses()
    rate = 50_000_000
    with talk(parse_compress("none"), pauses, rate) as (channel, sender, _):
        began_s = time.monotonic()
        sender.begin()
        count = sender.batch_pages_max
        for _ in range(20):
            sender.send(batch_in(sender.room(), range(count)))
        sender.drain()
        # At once: what the bucket holds, and a batch on credit.
        owed_bytes = channel.traffic.bytes_sent - 2.1 * count * PAGE_BYTES
    assert count * PAGE_BYTES <= 0.05 * rate
    assert pauses.seconds + time.monotonic() - began_s > owed_bytes / rate


def test_where_nothing_is_capped_it_does_not_wait() -> None:
    """The process stands still then."""
    pauses = Pauses()
    with talk(parse_compress("none"), pauses, 1000) as (_, sender, _):
        sender.begin(capped=False)
        for _ in range(20):
            sender.send(batch_in(sender.room(), range(16)))
        sender.drain()
        sender.send_at_once(batch_in(bytearray(PAGE_BYTES), [1]))
    assert pauses.seconds == 0.0


def send_many(sender: PageSender) -> None:
    for _ in range(50):
        sender.send(batch_in(sender.room(), range(16)))


class Enough(Exception):
    """Somebody has called it off."""


def test_what_ends_a_pause_ends_the_sending() -> None:
    """The thread that hands batches over is told, and does not wait for ever."""

    def pause(seconds: float) -> None:
        raise Enough

    with talk(parse_compress("none"), pause, 100_000) as (_, sender, _):
        sender.begin()
        with pytest.raises(Enough):
            send_many(sender)
        with pytest.raises(Enough):
            sender.drain()


def test_a_link_that_breaks_is_noticed() -> None:
    """By the next batch, or at the end of them."""
    with talk(parse_compress("zstd"), Pauses()) as (channel, sender, _):
        sender.begin()
        channel.shutdown()
        with pytest.raises(TransportError):
            send_many(sender)
        with pytest.raises(TransportError):
            sender.drain()


def test_leaving_does_not_wait_for_a_peer_that_reads_nothing() -> None:
    """A batch that does not get through is given up with the link."""
    ours, theirs = socket.socketpair()
    with theirs, Channel(theirs, Role.DESTINATION) as far:
        channel = Channel(ours, Role.SOURCE)
        with channel:
            far.send(m.Welcome.ours("test"))
            channel.expect(m.Welcome)
            channel.send(m.Hello(m.VERSION_MAX, bytes(16)))
            far.expect(m.Hello)
            channel.send(m.Offer(b"outline", OPTIONS))
            far.expect(m.Offer)
            far.send(m.OfferAccepted((1,)))
            channel.expect(m.OfferAccepted)
            with PageSender(channel, Pauses()) as sender:
                sender.begin()
                for _ in range(3):
                    sender.send(batch_in(sender.room(), range(256)))
