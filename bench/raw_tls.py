"""The plainest loops over TLS that there are: what could an encrypted link do at best?

    python -m bench.raw_tls receive ADDRESS BYTES     print "port N", then read
    python -m bench.raw_tls send ADDRESS PORT BYTES   write to it

One blocking socket and one thread at each end, in the way that the product talks: the
same keys, the same handshake, the same library. What is printed, and when the clock
runs, is as in workloads/raw.c.
"""

import resource
import socket
import ssl
import sys
import time

from migrate import identity
from transport import tls
from transport.tls import Introduced, Purpose, Secured

_BUFFER_BYTES = 256 << 10


def main(arguments: list[str]) -> None:
    """One of the two ends."""
    match arguments:
        case ["receive", address, count]:
            _receive(address, int(count))
        case ["send", address, port, count]:
            _send((address, int(port)), int(count))
        case _:
            sys.exit(f"usage: {(__doc__ or '').strip()}")


def _receive(address: str, count: int) -> None:
    with socket.create_server((address, 0)) as listener:
        print(f"port {listener.getsockname()[1]}", flush=True)
        connection, _ = listener.accept()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with tls.as_destination(connection, identity.load(), _anybody) as link:
        peer = _blocking(link)
        began_s, cpu_began_s = time.monotonic(), _cpu_s()
        done = 0
        while done < count:
            some = peer.recv_into(buffer)
            if not some:
                sys.exit("the sender has gone")
            done += some
        peer.sendall(b"d")
        _tell(began_s, cpu_began_s)


def _send(where: tuple[str, int], count: int) -> None:
    connection = socket.create_connection(where)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytes(range(256)) * (_BUFFER_BYTES // 256))
    own = identity.load()
    with tls.as_source(connection, own, Purpose.MIGRATE, _anybody) as link:
        peer = _blocking(link)
        began_s, cpu_began_s = time.monotonic(), _cpu_s()
        for done in range(0, count, _BUFFER_BYTES):
            peer.sendall(buffer[: count - done])
        if peer.recv(1) != b"d":
            sys.exit("the receiver has gone")
        _tell(began_s, cpu_began_s)


def _anybody(found: Introduced) -> None:
    """Whoever it is: these are the hosts of one bed."""


def _blocking(link: Secured) -> ssl.SSLSocket:
    link.socket.setblocking(True)
    return link.socket


def _tell(began_s: float, cpu_began_s: float) -> None:
    print(f"{time.monotonic() - began_s:.9f} {_cpu_s() - cpu_began_s:.9f}")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
