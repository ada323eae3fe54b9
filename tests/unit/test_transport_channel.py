"""The channel: words and pages over real sockets, and every way a link can fail."""

import contextlib
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.unit.tls_pair import tls_pair
from tests.unit.transport_samples import OPTIONS, REASON, TRANSACTION
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.connection import Buffer
from transport.errors import (
    ConnectionLost,
    LocalProtocolError,
    PeerTimedOut,
    RemoteProtocolError,
)
from transport.frames import FrameKind, header
from transport.states import Role, State

SOON_S = 20.0  # what is waited for here comes at once; this is for a busy machine


def socket_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        return near, far


@pytest.fixture(params=[socket_pair, tcp_pair], ids=["unix", "tcp"])
def ends(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    near, far = request.param()
    with near, far:
        yield near, far


@pytest.fixture(params=[socket_pair, tcp_pair, tls_pair], ids=["unix", "tcp", "tls"])
def channels(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, Channel]]:
    """A source and a destination that have spoken to each other up to pre-copy."""
    near, far = request.param()
    with Channel(near, Role.SOURCE) as source:
        with Channel(far, Role.DESTINATION) as destination:
            to_precopy(source, destination)
            yield source, destination


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def to_precopy(source: Channel, destination: Channel) -> None:
    destination.send(m.Welcome.ours("test"))
    source.expect(m.Welcome)
    source.send(m.Hello(m.VERSION_MAX, TRANSACTION))
    destination.expect(m.Hello)
    source.send(m.Offer(b"outline", OPTIONS))
    destination.expect(m.Offer)
    destination.send(m.OfferAccepted((1,)))
    source.expect(m.OfferAccepted)


def to_ready(source: Channel, destination: Channel) -> None:
    source.send(m.State(b"state"))
    destination.expect(m.State)
    source.send(m.End(0, 0, 0))
    destination.expect(m.End)
    destination.send(m.Ready(b"", b"", 0))
    source.expect(m.Ready)


def pages_of(channel: Channel) -> bytes:
    message = channel.receive()
    assert isinstance(message, m.Pages)
    return bytes(message.body)


def until_blocked(channel: Channel, timeout_s: float = SOON_S) -> None:
    """Send pages until the kernel takes no more; ends as sending ends."""
    while True:
        channel.send_pages([bytes(1 << 20)], timeout_s=timeout_s)


def test_a_whole_talk(
    channels: tuple[Channel, Channel], threads: ThreadPoolExecutor
) -> None:
    """Two channels speak a migration from the first word to the last."""
    source, destination = channels
    batch: list[Buffer] = [
        b"head",
        bytes(4096),
        bytearray(b"x" * 8192),
        memoryview(b"tail"),
    ]

    def arrive() -> list[bytes]:
        bodies = []
        while isinstance(message := destination.receive(), m.Pages):
            bodies.append(bytes(message.body))
        assert isinstance(message, m.RoundEnd)
        destination.send(m.RoundDone(1, len(bodies), 0, 0))
        destination.expect(m.State)
        destination.expect(m.End)
        destination.send(m.Ready(b"", b"", 0))
        destination.expect(m.Go)
        destination.send(m.Accepted(TRANSACTION, b"", False, 0))
        destination.expect(m.Fin)
        destination.send(m.FinAck())
        return bodies

    arrival = threads.submit(arrive)
    for _ in range(100):
        source.send_pages(batch)
    source.send(m.RoundEnd(1, 100, 0, 0))
    source.expect(m.RoundDone)
    source.send(m.State(bytes(5 << 20)))
    source.send(m.End(0, 0, 0))
    source.expect(m.Ready)
    source.send(m.Go())
    source.expect(m.Accepted, m.Declined)
    source.send(m.Fin())
    source.expect(m.FinAck)
    assert arrival.result(SOON_S) == [b"".join(batch)] * 100
    assert source.state is destination.state is State.RELEASED
    assert source.traffic.bytes_sent == destination.traffic.bytes_received
    assert source.traffic.bytes_received == destination.traffic.bytes_sent
    assert source.traffic.pages_frames_sent == 100
    assert destination.traffic.pages_frames_received == 100


def test_more_buffers_than_one_call_takes(
    channels: tuple[Channel, Channel], threads: ThreadPoolExecutor
) -> None:
    """More buffers than IOV_MAX, empty ones among them, arrive whole and in order."""
    source, destination = channels
    buffers = [b"%d," % number for number in range(5000)]
    receiving = threads.submit(pages_of, destination)
    source.send_pages([*buffers, b"", bytearray()])
    assert receiving.result(SOON_S) == b"".join(buffers)


def test_partial_sends(threads: ThreadPoolExecutor) -> None:
    """With the smallest socket buffers every send is partial, and nothing is lost."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with Channel(near, Role.SOURCE) as source, Channel(far, Role.DESTINATION) as dest:
        to_precopy(source, dest)
        buffers = [bytes([number % 251]) * 997 for number in range(1000)]
        receiving = threads.submit(pages_of, dest)
        source.send_pages(buffers)
        assert receiving.result(SOON_S) == b"".join(buffers)


def test_bodies_lie_in_one_buffer(channels: tuple[Channel, Channel]) -> None:
    """Pages are received into the same memory again and again."""
    source, destination = channels
    bodies = []
    for fill in (b"a", b"b"):
        source.send_pages([fill * 5000])
        message = destination.receive()
        assert isinstance(message, m.Pages)
        bodies.append(message.body)
    assert bodies[0].obj is bodies[1].obj
    assert bodies[0] == bodies[1] == b"b" * 5000


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 6, 104])
def test_a_peer_that_closes(
    ends: tuple[socket.socket, socket.socket], cut: int
) -> None:
    """A link that ends, at whatever byte, is lost; in a frame that is said."""
    with Channel(ends[0], Role.DESTINATION) as channel:
        frame = header(FrameKind.PAGES, 100) + bytes(100)
        ends[1].sendall(frame[:cut])
        ends[1].close()
        with pytest.raises(ConnectionLost, match=r"closed the connection") as caught:
            channel.receive()
        assert ("middle of a frame" in str(caught.value)) == (cut > 0)
        assert channel.state is State.ABORTED


def test_a_reset(threads: ThreadPoolExecutor) -> None:
    """A reset is a lost link with the kernel's reason."""
    near, far = tcp_pair()
    with near, far, Channel(near, Role.SOURCE) as channel:
        # Zero seconds of linger: close() sends a reset (socket(7)).
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\x00\0\0\0")
        far.close()
        with pytest.raises(ConnectionLost, match="reset"):
            channel.receive()


@pytest.mark.parametrize("state", [State.PRECOPY, State.GO])
def test_trouble_settles_the_state(
    channels: tuple[Channel, Channel], state: State
) -> None:
    """A dead link before Go leaves the source aborted, after it in doubt."""
    source, destination = channels
    if state is State.GO:
        to_ready(source, destination)
        source.send(m.Go())
    destination.close()
    with pytest.raises(ConnectionLost):
        source.receive()
    assert source.state is (State.GO if state is State.GO else State.ABORTED)


def waiting(
    threads: ThreadPoolExecutor, work: Callable[[], object]
) -> "Future[object]":
    """``work`` under way in a thread of its own; the next moment it will block."""
    began = threading.Event()

    def run() -> object:
        began.set()
        return work()

    future = threads.submit(run)
    assert began.wait(SOON_S)
    return future


def test_shutdown_wakes_a_receiver(
    channels: tuple[Channel, Channel], threads: ThreadPoolExecutor
) -> None:
    """Who waits for the peer's word learns at once that we gave up, even in doubt."""
    source, _ = channels
    future = waiting(threads, lambda: source.receive(timeout_s=2 * SOON_S))
    source.shutdown()
    with pytest.raises(ConnectionLost, match="shut down from our side"):
        future.result(SOON_S)


def test_shutdown_wakes_a_sender(
    channels: tuple[Channel, Channel], threads: ThreadPoolExecutor
) -> None:
    """So does who waits until the peer reads."""
    source, _ = channels
    future = waiting(threads, lambda: until_blocked(source))
    source.shutdown()
    with pytest.raises(ConnectionLost, match="shut down from our side"):
        future.result(SOON_S)


def test_shutdown_holds_for_later_calls(channels: tuple[Channel, Channel]) -> None:
    """After shutdown nothing is sent or received; it may be called again, and close."""
    source, _ = channels
    source.shutdown()
    source.shutdown()
    with pytest.raises(ConnectionLost):
        source.send_pages([b"x"])
    with pytest.raises(ConnectionLost):
        source.receive()
    source.close()
    source.close()
    source.shutdown()


def test_a_silent_peer_times_out(channels: tuple[Channel, Channel]) -> None:
    """Nobody is waited for beyond the time given."""
    source, _ = channels
    with pytest.raises(PeerTimedOut, match="receiving"):
        source.receive(timeout_s=0.01)
    assert source.state is State.ABORTED


def test_a_peer_that_does_not_read_times_out(
    channels: tuple[Channel, Channel],
) -> None:
    """The same where it is the peer's buffers that stay full."""
    source, _ = channels
    with pytest.raises(PeerTimedOut, match="sending"):
        until_blocked(source, timeout_s=0.01)


def test_dripping_bytes_do_not_prolong_the_time(
    ends: tuple[socket.socket, socket.socket], threads: ThreadPoolExecutor
) -> None:
    """A byte now and then is not progress: the whole frame has to come in time."""
    enough = threading.Event()

    def drip() -> None:
        frame = header(FrameKind.PAGES, 1 << 20) + bytes(1 << 20)
        with contextlib.suppress(OSError):
            for place in range(len(frame)):
                ends[1].sendall(frame[place : place + 1])
                if enough.wait(0.005):
                    return

    dripping = threads.submit(drip)
    with Channel(ends[0], Role.DESTINATION) as channel:
        with pytest.raises(PeerTimedOut):
            channel.receive(timeout_s=0.05)
    enough.set()
    dripping.result(SOON_S)


def test_an_oversized_frame_costs_no_memory(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """A length beyond the limit is refused when only the header is there."""
    with Channel(ends[0], Role.SOURCE) as channel:
        ends[1].sendall(b"\xff\xff\xff\xff\x01")
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError, match="4294967295"):
                channel.receive()
            assert tracemalloc.get_traced_memory()[1] < 1 << 17
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "banner", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 64]
)
def test_other_protocols_are_not_ours(
    ends: tuple[socket.socket, socket.socket], banner: bytes
) -> None:
    """What another kind of program says is a breach of the protocol."""
    with Channel(ends[0], Role.DESTINATION) as channel:
        ends[1].sendall(banner)
        with pytest.raises(RemoteProtocolError):
            channel.receive()


def test_pings_are_answered_without_the_caller(
    channels: tuple[Channel, Channel], threads: ThreadPoolExecutor
) -> None:
    """A side that waits for something else answers, and keeps waiting."""
    source, destination = channels
    expecting = threads.submit(destination.expect, m.State)
    assert source.ping() >= 0.0
    assert source.ping() >= 0.0
    source.send(m.State(b"state"))
    assert expecting.result(SOON_S) == m.State(b"state")


@pytest.mark.parametrize("word", [m.Abort, m.Declined])
def test_expect_tells_why_the_peer_gave_up(
    channels: tuple[Channel, Channel], word: type[m.Abort] | type[m.Declined]
) -> None:
    """An end where something else was expected carries the peer's reasons."""
    source, destination = channels
    if word is m.Declined:
        to_ready(source, destination)
        source.send(m.Go())
    end = (
        m.Declined(TRANSACTION, b"", (REASON,))
        if word is m.Declined
        else m.Abort((REASON,))
    )
    destination.send(end)
    with pytest.raises(PeerGaveUp, match="io_uring") as caught:
        source.expect(m.Accepted)
    assert caught.value.message == end
    assert caught.value.reasons == (REASON,)


def test_expect_returns_an_end_that_was_expected(
    channels: tuple[Channel, Channel],
) -> None:
    """Who expects Declined gets it as a message."""
    source, destination = channels
    to_ready(source, destination)
    source.send(m.Go())
    destination.send(m.Declined(TRANSACTION, b"", ()))
    assert source.expect(m.Accepted, m.Declined) == m.Declined(TRANSACTION, b"", ())
    assert source.state is State.DECLINED


def test_expect_refuses_another_word(channels: tuple[Channel, Channel]) -> None:
    """A word that the state allows and the story does not is a breach too."""
    source, destination = channels
    source.send(m.Layout(0, b""))
    with pytest.raises(RemoteProtocolError, match=r"Layout.*RoundEnd or State"):
        destination.expect(m.RoundEnd, m.State)


def test_an_abort_is_heard_between_batches(
    channels: tuple[Channel, Channel],
) -> None:
    """Who sends pages learns at the next batch that the peer has given up."""
    source, destination = channels
    source.send_pages([b"page"])
    destination.abort((REASON,))
    assert destination.state is State.ABORTED
    with pytest.raises(PeerGaveUp, match="io_uring"):
        source.send_pages([b"page"])
    assert source.state is State.ABORTED


def test_last_words_are_heard_over_a_broken_link(
    channels: tuple[Channel, Channel],
) -> None:
    """Where sending fails because the peer has left, its reason is what is told."""
    source, destination = channels
    destination.abort((REASON,))
    destination.close()

    def freeze() -> None:
        source.send(m.State(b"state"))
        source.send(m.End(0, 0, 0))
        source.expect(m.Ready)

    with pytest.raises(PeerGaveUp, match="io_uring"):
        freeze()
    assert source.state is State.ABORTED


def test_abort_never_raises(channels: tuple[Channel, Channel]) -> None:
    """The way out works on a dead link, twice, and after the peer's end."""
    source, destination = channels
    destination.close()
    source.abort((REASON,) * 500)
    assert source.state is State.ABORTED
    source.abort(())
    assert source.state is State.ABORTED


def test_abort_does_not_take_back_go(channels: tuple[Channel, Channel]) -> None:
    """At Go it leaves the source in doubt, and says nothing."""
    source, destination = channels
    to_ready(source, destination)
    source.send(m.Go())
    sent = source.traffic.bytes_sent
    source.abort((REASON,))
    assert source.state is State.GO
    assert source.traffic.bytes_sent == sent


def test_our_own_mistakes_send_nothing(channels: tuple[Channel, Channel]) -> None:
    """What may not be said leaves neither bytes nor a change of state."""
    source, destination = channels
    sent = source.traffic.bytes_sent
    with pytest.raises(LocalProtocolError):
        source.send(m.Go())
    with pytest.raises(LocalProtocolError):
        source.send_pages([])
    with pytest.raises(LocalProtocolError):
        destination.send_pages([b"x"])
    assert source.traffic.bytes_sent == sent
    assert source.state is State.PRECOPY


def test_a_flood_of_pings_runs_into_the_deadline(
    ends: tuple[socket.socket, socket.socket], threads: ThreadPoolExecutor
) -> None:
    """Pings keep nobody waiting beyond the time given, nor pile up in memory."""
    ping = header(FrameKind.MESSAGE, 3) + b"\x92\x12\x01"

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                ends[1].sendall(ping * 1000)

    flooding = threads.submit(flood)
    with Channel(ends[0], Role.SOURCE) as channel:
        # The flooder reads no answer, so sending is what gets stuck in the end.
        with pytest.raises(PeerTimedOut):
            channel.receive(timeout_s=0.2)
    flooding.result(SOON_S)


def test_a_dead_peer_is_noticed_by_the_kernel() -> None:
    """Small messages leave at once, and unanswered ones do not wait for 15 minutes."""
    near, far = tcp_pair()
    with far, Channel(near, Role.SOURCE):
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
