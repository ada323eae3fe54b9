"""The two doors to trio: what is connected and accepted, and what is told if not."""

import contextlib
import errno
import socket

import pytest
import trio

from transport import messages as m
from transport.channel import Channel, connect, listen, serve
from transport.errors import ConnectionLost, PeerTimedOut
from transport.states import Role

SOON_S = 20.0  # what is waited for here comes at once; this is for a busy machine


def test_connect_and_serve() -> None:
    """What trio connects and accepts are sockets for ordinary threads."""

    def arrive(sock: socket.socket) -> None:
        with Channel(sock, Role.DESTINATION) as channel:
            channel.send(m.Welcome.ours("test"))
            channel.expect(m.Hello)
            channel.close(drain_s=SOON_S)

    def depart(channel: Channel) -> m.Welcome:
        welcome = channel.expect(m.Welcome)
        channel.send(m.Hello(m.VERSION_MAX, b"x" * 16))
        return welcome

    async def main() -> None:
        (listener,) = await listen("127.0.0.1", 0)
        port = listener.socket.getsockname()[1]

        async def arrival(sock: socket.socket) -> None:
            await trio.to_thread.run_sync(arrive, sock)

        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, [listener], arrival)
                for _ in range(3):
                    sock = await connect("127.0.0.1", port, deadline_s=SOON_S)
                    with Channel(sock, Role.SOURCE) as channel:
                        welcome = await trio.to_thread.run_sync(depart, channel)
                        assert welcome == m.Welcome.ours("test")
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_nobody_listens() -> None:
    """A refused connection is told with host, port and the kernel's reason."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionLost, match=rf"127\.0\.0\.1 port {port}.*refused"):
        trio.run(lambda: connect("127.0.0.1", port, deadline_s=SOON_S))


def test_an_unknown_name() -> None:
    """A name that does not exist is told, too (RFC 6761 reserves .invalid)."""
    with pytest.raises(ConnectionLost, match=r"host\.invalid port 1"):
        trio.run(lambda: connect("host.invalid", 1, deadline_s=SOON_S))


def test_nobody_answers() -> None:
    """A host that does not answer is given up at the deadline."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        with contextlib.ExitStack() as stack:
            # Fill the queue of connections: further ones get no answer (listen(2)).
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                assert filler.connect_ex(server.getsockname()) in (
                    0,
                    errno.EINPROGRESS,
                )
            with pytest.raises(PeerTimedOut, match="no answer in"):
                trio.run(lambda: connect(*server.getsockname(), deadline_s=0.2))
