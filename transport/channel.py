"""A talk over a socket: blocking, for one thread at a time.

The socket is in non-blocking mode underneath. Where bytes are there, or room for them,
an operation is one system call; only where not does it wait in poll(2), until a
deadline or until ``shutdown`` is called from another thread. Nothing here waits on an
event loop, so the frozen section of a migration may use it.

trio is the shell around it: ``connect`` and ``listen`` are its two doors, and what
comes out of them is an ordinary socket. It is imported at those doors, since it takes
longer to import than all the rest, and a worker that was handed its socket needs none.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from transport import messages as m
from transport.connection import Buffer, Connection
from transport.errors import (
    ConnectionLost,
    Interrupted,
    PeerTimedOut,
    RemoteProtocolError,
    TransportError,
)
from transport.frames import Frame, FrameDecoder
from transport.states import Role, State
from transport.tls import Secured

if TYPE_CHECKING:
    import trio

TIMEOUT_S: Final = 30.0
# How long sent bytes may stay unacknowledged, or unsent because the peer does not read,
# before the kernel gives the connection up; it also bounds the keepalive probes
# (TCP_USER_TIMEOUT in tcp(7)). The default is about 15 minutes.
USER_TIMEOUT_S: Final = 10.0
_KEEPALIVE_IDLE_S: Final = 2
_KEEPALIVE_INTERVAL_S: Final = 1
_KEEPALIVE_PROBES: Final = 3

# How long to read on where sending has failed. The link is dead then, so all there
# will ever be is there.
_LAST_WORDS_S: Final = 0.2

# How many buffers one sendmsg(2) takes.
_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

M = TypeVar("M", bound=m.Message)


class PeerGaveUp(TransportError):
    """The peer said no where something else was expected. The link is still good."""

    def __init__(self, message: m.Abort | m.Declined | m.Refused) -> None:
        self.message = message
        self.reasons = message.reasons
        said = "; ".join(reason.message for reason in message.reasons)
        super().__init__(f"the peer said {type(message).__name__}: {said or 'no why'}")


@dataclass(slots=True)
class Traffic:
    """What has gone over one channel, headers included."""

    bytes_sent: int = 0
    bytes_received: int = 0
    pages_frames_sent: int = 0
    pages_frames_received: int = 0


class Channel:
    """One side of a migration's talk. Owns the socket.

    Every operation takes ``timeout_s``: how long it may take in all, while a message in
    parts has that long for each part.

    After ConnectionLost (PeerTimedOut is one) the state is where ``states.on_trouble``
    leaves this side. After RemoteProtocolError it is as before; ``abort`` tells the
    peer and settles it. Either way nothing is left to do then but to close.
    """

    def __init__(self, link: Secured | socket.socket, role: Role) -> None:
        """Talk over ``link``; a plain socket is for two ends of one program."""
        self._link = link
        # What is asked of the socket itself goes past the methods of SSLSocket, of
        # which some would end TLS under the feet of another thread.
        self._socket = link.socket if isinstance(link, Secured) else link
        self._unread = link.pending if isinstance(link, Secured) else _nothing
        self._socket.setblocking(False)
        _tune(self._socket)
        self._connection = Connection(role)
        self._decoder = FrameDecoder()
        self._poll = select.poll()
        self._poll.register(self._socket, 0)
        self._interruption = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._hearing = select.poll()
        self._hearing.register(self._socket, select.POLLIN)
        self._hearing.register(self._interruption, select.POLLIN)
        self._shut_down = False
        self._pings = 0
        self.traffic = Traffic()

    @property
    def state(self) -> State:
        """How far the talk has come."""
        return self._connection.state

    @property
    def role(self) -> Role:
        """Which side we are."""
        return self._connection.role

    @property
    def transaction(self) -> bytes | None:
        """The name of the migration, from Hello on."""
        return self._connection.transaction

    def send(self, message: m.AnyMessage, *, timeout_s: float = TIMEOUT_S) -> None:
        """Say ``message``; it may be on its way even if this raises ConnectionLost.

        Raises:
            LocalProtocolError: it may not be said now; nothing was sent.
            ConnectionLost: see the class.
            PeerGaveUp: the link broke, and before that the peer had said why.
        """
        self._send(self._connection.send(message), _deadline(timeout_s))

    def send_pages(
        self, buffers: Sequence[Buffer], *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Send ``buffers`` as the body of one pages frame, without copying them.

        They may be used again when this returns. Raises as ``send`` does, and
        PeerGaveUp also if the peer has said so meanwhile.
        """
        deadline = _deadline(timeout_s)
        while self.is_readable():
            self._heed(self._receive(deadline))
        self._send(self._connection.send_pages(buffers), deadline)
        self.traffic.pages_frames_sent += 1

    def receive(self, *, timeout_s: float = TIMEOUT_S) -> m.AnyMessage | m.Pages:
        """What the peer says next. Pings are answered, and not returned.

        ``Pages.body`` lies in a buffer that is used again: valid until the next call.

        Raises:
            RemoteProtocolError, ConnectionLost: see the class.
            Interrupted: see ``interrupt``.
        """
        return self._receive(_deadline(timeout_s), timeout_s)

    def expect(self, *words: type[M], timeout_s: float = TIMEOUT_S) -> M:
        """The next message, which must be one of ``words``.

        Raises:
            PeerGaveUp: it is Abort, Declined or Refused instead.
            RemoteProtocolError: it is something else, though the state allows it.
            ConnectionLost: see the class.
            Interrupted: see ``interrupt``.
        """
        deadline = _deadline(timeout_s)
        while True:
            message = self._receive(deadline, timeout_s)
            if isinstance(message, words):
                return message
            if isinstance(message, m.Abort | m.Declined | m.Refused):
                raise PeerGaveUp(message)
            if not isinstance(message, m.Pong):
                wanted = " or ".join(word.__name__ for word in words)
                raise RemoteProtocolError(
                    f"the peer said {type(message).__name__}; expected was {wanted}"
                )

    def ping(self, *, timeout_s: float = TIMEOUT_S) -> float:
        """Ask whether the peer is there; the round trip in seconds.

        Only where the peer would say nothing else but that it gives up. Raises as
        ``expect`` does.
        """
        self._pings += 1
        deadline = _deadline(timeout_s)
        began_s = time.monotonic()
        self._send(self._connection.send(m.Ping(self._pings)), deadline)
        self.expect(m.Pong, timeout_s=max(0.0, deadline - time.monotonic()))
        return time.monotonic() - began_s

    @property
    def peer_host(self) -> str:
        """The address of the other end; empty if it has none, or is gone."""
        return _peer(self._socket).partition(" ")[0].removeprefix("(gone)")

    def may_say(self, word: type[m.Message]) -> bool:
        """Whether the talk has come to where ``word`` may be said."""
        return self._connection.may_say(word)

    def is_readable(self) -> bool:
        """Whether the peer has said something, or has gone. Does not wait."""
        return self._unread() > 0 or self._wait(select.POLLIN, 0.0)

    def abort(self, reasons: Sequence[m.Reason], *, timeout_s: float = 1.0) -> None:
        """Give up, and tell the peer if the state allows it and the link carries it.

        The way out after anything went wrong: raises nothing of this package, and
        leaves the state where ``states.on_trouble`` would, or where the peer's own
        last word has put it. At GO that changes nothing.
        """
        if not self._connection.may_say(m.Abort):
            self._connection.lost()
            return
        try:
            self.send(m.Abort(tuple(reasons[: m.REASONS_MAX])), timeout_s=timeout_s)
        except TransportError:
            self._connection.lost()

    def interrupt(self) -> None:
        """Wait for the peer's next word no longer, but hear what has come: whoever
        waits, or else the next who would, gets Interrupted. From a signal handler.
        """
        if self._socket.fileno() >= 0:
            os.eventfd_write(self._interruption, 1)

    def shutdown(self) -> None:
        """End the link, from any thread: who waits in this channel gets ConnectionLost.

        It stays to be closed by its own thread.
        """
        self._shut_down = True
        try:
            # Wakes a poll(2) in another thread; close(2) would not.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            # ENOTCONN: the peer was faster. EBADF: it is closed already.
            return

    def close(self, *, drain_s: float = 0.0) -> None:
        """Close the link. With ``drain_s`` wait that long for the peer to close first:
        unread bytes make close(2) send a reset, which can overtake our last words.
        """
        if self._socket.fileno() < 0:
            return
        try:
            if drain_s > 0:
                self._drain(_deadline(drain_s))
        finally:
            self._link.close()
            os.close(self._interruption)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(
        self, deadline: float, part_timeout_s: float = 0.0, *, answering: bool = True
    ) -> m.AnyMessage | m.Pages:
        while True:
            frame = self._receive_frame(deadline)
            message = self._connection.receive(frame.kind, frame.body)
            if isinstance(message, m.Ping):
                if answering:
                    pong = self._connection.send(m.Pong(message.number))
                    self._send(pong, deadline)
            elif message is not None:
                if isinstance(message, m.Pages):
                    self.traffic.pages_frames_received += 1
                return message
            elif self._connection.mid_message:
                deadline = max(deadline, _deadline(part_timeout_s))
            if time.monotonic() > deadline:
                # Bytes are there all the time, so nothing has waited and looked.
                raise self._timed_out("receiving")

    def _receive_frame(self, deadline: float) -> Frame:
        while True:
            room = self._decoder.room()
            try:
                count = self._link.recv_into(room)
            except BlockingIOError:
                self._wait_to_hear(deadline)
                continue
            except OSError as error:
                raise self._lost("receiving", error) from error
            if count == 0:
                raise self._lost("receiving", None)
            self.traffic.bytes_received += count
            frame = self._decoder.filled(count)
            if frame is not None:
                return frame

    def _send(self, buffers: Sequence[Buffer], deadline: float) -> None:
        views = [memoryview(buffer) for buffer in buffers]
        first = 0
        while first < len(views):
            try:
                count = self._link.sendmsg(views[first : first + _IOV_MAX])
            except BlockingIOError:
                self._wait_to_send(deadline)
                continue
            except OSError as error:
                raise self._last_words(error) from error
            self.traffic.bytes_sent += count
            while first < len(views) and count >= len(views[first]):
                count -= len(views[first])
                first += 1
            if count:
                views[first] = views[first][count:]

    def _wait_to_send(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._wait(select.POLLOUT, left_s):
            raise self._timed_out("sending")

    def _wait_to_hear(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if self._socket.fileno() < 0:
            raise self._lost("waiting", None)
        ready = self._hearing.poll(_milliseconds(left_s)) if left_s > 0 else []
        if not ready:
            raise self._timed_out("receiving")
        if [fd for fd, _ in ready] == [self._interruption]:
            os.eventfd_read(self._interruption)
            raise Interrupted("we were told to wait no longer")

    def _wait(self, event: int, timeout_s: float) -> bool:
        if self._socket.fileno() < 0:
            raise self._lost("waiting", None)
        self._poll.modify(self._socket, event)
        return bool(self._poll.poll(_milliseconds(timeout_s)))

    def _timed_out(self, doing: str) -> PeerTimedOut:
        self._connection.lost()
        return PeerTimedOut(f"{doing}: the peer {_peer(self._socket)} took too long")

    def _lost(self, doing: str, error: OSError | None) -> ConnectionLost:
        """What to raise when the link turns out to be dead."""
        self._connection.lost()
        if self._shut_down:
            return ConnectionLost(f"{doing}: the channel was shut down from our side")
        if error is not None and error.errno == errno.ETIMEDOUT:
            return self._timed_out(doing)
        if error is not None:
            return ConnectionLost(f"{doing}: {error.strerror or error}")
        where = " in the middle of a frame" if self._decoder.mid_frame else ""
        return ConnectionLost(f"{doing}: the peer closed the connection{where}")

    def _last_words(self, error: OSError) -> TransportError:
        """Sending failed. Perhaps the peer said why before it left: it can be read even
        after a reset.
        """
        if not self._shut_down:
            try:
                deadline = _deadline(_LAST_WORDS_S)
                while True:
                    self._heed(self._receive(deadline, answering=False))
            except PeerGaveUp as gave_up:
                return gave_up
            except TransportError:
                pass
        return self._lost("sending", error)

    def _heed(self, message: m.AnyMessage | m.Pages) -> None:
        """The peer spoke while we had the floor: it may only give up, or pong."""
        if isinstance(message, m.Abort | m.Declined | m.Refused):
            raise PeerGaveUp(message)

    def _drain(self, deadline: float) -> None:
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                if not self._wait(select.POLLIN, left_s):
                    return
                if not socket.socket.recv(self._socket, 1 << 16):
                    return
        except OSError:
            # Gone before we were: nothing is left to wait for.
            return


async def connect(host: str, port: int, *, deadline_s: float) -> socket.socket:
    """A socket to the agent there.

    Raises:
        PeerTimedOut: nobody answered within ``deadline_s``.
        ConnectionLost: the name is unknown or nobody listens.
    """
    import trio

    try:
        with trio.fail_after(deadline_s):
            stream = await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise PeerTimedOut(
            f"connecting to {host} port {port}: no answer in {deadline_s:g} s"
        ) from None
    except OSError as error:
        raise ConnectionLost(
            f"connecting to {host} port {port}: {_why(error)}"
        ) from error
    return _plain(stream.socket)


async def listen(host: str | None, port: int) -> list[trio.SocketListener]:
    """Listening sockets for ``host`` (None: every address of this machine).

    Raises:
        OSError: the address is taken or not ours.
    """
    import trio

    return list(await trio.open_tcp_listeners(port, host=host))


async def serve(
    listeners: Sequence[trio.SocketListener],
    arrive: Callable[[socket.socket], Awaitable[None]],
) -> None:
    """Call ``arrive`` in a task of its own with each connection, until cancelled.

    The socket is the callee's: an ordinary one, which can go on in a worker process as
    a number and there become the socket of a Channel.
    """
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        await arrive(_plain(stream.socket))

    await trio.serve_listeners(handle, list(listeners))


def _why(error: OSError) -> str:
    """What the kernel said; trio wraps it, one error for each address it tried."""
    cause: BaseException | None = error.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return error.strerror or getattr(cause, "strerror", None) or str(error)


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """The socket, taken away from trio."""
    return socket.socket(fileno=sock.detach())


def _tune(sock: socket.socket) -> None:
    """Small messages leave at once, and a dead peer is noticed within seconds.

    Buffer sizes are left to the kernel: to set one is to lose its autotuning, which
    grows them to what the path needs (tcp_rmem and tcp_wmem in tcp(7)).
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT_S * 1000)),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer(sock: socket.socket) -> str:
    try:
        address = sock.getpeername()
    except OSError:
        return "(gone)"
    return f"{address[0]} port {address[1]}" if isinstance(address, tuple) else ""


def _milliseconds(seconds: float) -> int:
    """Rounded up, or the last one would be spent in a loop."""
    return -int(-seconds * 1000 // 1)


def _nothing() -> int:
    return 0


def _deadline(timeout_s: float) -> float:
    return time.monotonic() + timeout_s
