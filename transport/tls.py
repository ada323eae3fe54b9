"""A socket between two keys that know each other: TLS 1.3, pinned on both sides.

There is no authority that vouches for anybody. Each side first says in the clear which
certificate it is going to prove; the other looks its fingerprint up, and makes it the
only one that TLS may accept. So nothing of a stranger's certificate is ever parsed, its
fingerprint is known to whoever keeps a log, and the handshake has one possible outcome.

    6d 69 67 72 61 74 65 01   "migrate" and the version of this introduction
    01                        the purpose, see Purpose
    01 2f                     the length of the certificate
    30 82 …                   the certificate, DER

The introductions are not secret and prove nothing. That TLS proves the certificate
named there, and no other, makes them true. No tickets, so nothing is ever resumed and
nothing is sent early; there is no renegotiation in TLS 1.3 (RFC 8446, 4.1.2).
"""

import hashlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NewType, Self

from transport.errors import (
    ConnectionLost,
    NotAuthenticated,
    PeerTimedOut,
    RemoteProtocolError,
)

Fingerprint = NewType("Fingerprint", str)  # see fingerprint()

HANDSHAKE_S: Final = 10.0
# An Ed25519 certificate with a name of 64 bytes has about 350.
CERTIFICATE_BYTES_MAX: Final = 2048

_MAGIC: Final = b"migrate\x01"
_INTRODUCTION: Final = struct.Struct(">8sBH")
_RECORD_BYTES: Final = 1 << 14  # what one record holds (RFC 8446, 5.1)


class Purpose(Enum):
    """What the source wants. Numbers on the wire: none is reused, zero is invalid."""

    MIGRATE = 1
    PAIR = 2


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this side proves."""

    certificate: bytes  # DER
    pem: bytes = field(repr=False)  # the same, and its private key

    @property
    def fingerprint(self) -> Fingerprint:
        """What the other side knows us by."""
        return fingerprint(self.certificate)


@dataclass(frozen=True, slots=True)
class Introduced:
    """Whom the other side claims to be, before it has proved anything."""

    purpose: Purpose
    certificate: bytes  # DER, not parsed

    @property
    def fingerprint(self) -> Fingerprint:
        """What to look up."""
        return fingerprint(self.certificate)


def fingerprint(certificate: bytes) -> Fingerprint:
    """``SHA256:`` and 64 hex digits: the digest of the certificate's DER."""
    return Fingerprint("SHA256:" + hashlib.sha256(certificate).hexdigest())


class Secured:
    """The bytes that go through TLS; owns ``socket``, which never blocks.

    For one thread at a time, but for ``socket.socket.shutdown`` of ``socket``, which
    ends it from anywhere.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: Introduced) -> None:
        self.socket: Final = sock
        self.peer: Final = peer

    def recv_into(self, room: memoryview) -> int:
        """Bytes that have come, at most a record of them; 0 at the end.

        Raises:
            BlockingIOError: none are there.
            OSError: the link is broken, or what came is not from the peer.
        """
        try:
            return self.socket.recv_into(room)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def sendmsg(self, buffers: Sequence[memoryview]) -> int:
        """Send from the first of ``buffers`` on; how many bytes have been taken.

        What is not taken has to be given again, as it was: OpenSSL keeps the record
        that it could not write (SSL_write(3ssl)).

        Raises:
            BlockingIOError: there is no room for any.
        """
        taken = 0
        rest = list(buffers)
        while rest:
            piece = rest[0] if len(rest[0]) >= _RECORD_BYTES else _record(rest)
            try:
                count = self.socket.send(piece)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if taken:
                    return taken
                raise BlockingIOError from None
            taken += count
            _drop(rest, count)
        return taken

    def pending(self) -> int:
        """Bytes that are decrypted and not read; poll(2) knows nothing of them."""
        return self.socket.pending()

    def close(self) -> None:
        """Close the socket. The peer is not told: an end is never taken on trust."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def as_source(
    sock: socket.socket,
    own: Credentials,
    purpose: Purpose,
    judge: Callable[[Introduced], None],
    *,
    timeout_s: float = HANDSHAKE_S,
) -> Secured:
    """TLS with an agent, as the one who has connected. Owns ``sock`` from here on.

    ``judge`` raises if it is not the one who is wanted; nothing but our certificate has
    been said by then.

    Raises:
        NotAuthenticated: it could not prove its key, or would not have ours.
        RemoteProtocolError: whoever answers is no agent.
        ConnectionLost: the link broke, or nothing came in time.
    """
    with _closed_on_failure(sock):
        deadline = time.monotonic() + timeout_s
        _introduce(sock, own, purpose, deadline)
        peer = _introduced(sock, deadline)
        judge(peer)
        return _handshake(sock, own, peer, deadline, server_side=False)


def as_destination(
    sock: socket.socket,
    own: Credentials,
    judge: Callable[[Introduced], None],
    *,
    timeout_s: float = HANDSHAKE_S,
) -> Secured:
    """TLS with whoever has connected; as ``as_source``.

    Who is not known learns our certificate and nothing else.
    """
    with _closed_on_failure(sock):
        deadline = time.monotonic() + timeout_s
        peer = _introduced(sock, deadline)
        _introduce(sock, own, peer.purpose, deadline)
        judge(peer)
        return _handshake(sock, own, peer, deadline, server_side=True)


class _closed_on_failure:  # noqa: N801  a context manager, read as a phrase
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __enter__(self) -> None:
        self._socket.setblocking(False)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._socket.close()


def _introduce(
    sock: socket.socket, own: Credentials, purpose: Purpose, deadline: float
) -> None:
    head = _INTRODUCTION.pack(_MAGIC, purpose.value, len(own.certificate))
    rest = head + own.certificate
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            _wait(sock, select.POLLOUT, deadline)
        except OSError as error:
            raise ConnectionLost(f"introducing ourselves: {error.strerror}") from error


def _introduced(sock: socket.socket, deadline: float) -> Introduced:
    head = _exactly(sock, _INTRODUCTION.size, deadline)
    magic, number, length = _INTRODUCTION.unpack(head)
    if magic != _MAGIC:
        raise RemoteProtocolError(
            f"the link begins with {head.hex()}: that is no migrate agent or command "
            "of this version"
        )
    if not 1 <= length <= CERTIFICATE_BYTES_MAX:
        raise RemoteProtocolError(
            f"a certificate of {length} bytes; allowed are 1 to {CERTIFICATE_BYTES_MAX}"
        )
    try:
        purpose = Purpose(number)
    except ValueError:
        raise RemoteProtocolError(f"nobody connects for purpose {number}") from None
    return Introduced(purpose, _exactly(sock, length, deadline))


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """So many bytes and not one more: what follows belongs to TLS."""
    held = b""
    while len(held) < count:
        try:
            more = sock.recv(count - len(held))
        except BlockingIOError:
            _wait(sock, select.POLLIN, deadline)
            continue
        except OSError as error:
            raise ConnectionLost(f"waiting for its name: {error.strerror}") from error
        if not more:
            raise ConnectionLost("the peer closed the connection and gave no name")
        held += more
    return held


def _handshake(
    sock: socket.socket,
    own: Credentials,
    peer: Introduced,
    deadline: float,
    *,
    server_side: bool,
) -> Secured:
    context = _context(own, peer, server_side=server_side)
    secured = context.wrap_socket(
        sock, server_side=server_side, do_handshake_on_connect=False
    )
    with _closed_on_failure(secured):
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                _wait(secured, select.POLLIN, deadline)
            except ssl.SSLWantWriteError:
                _wait(secured, select.POLLOUT, deadline)
            except ssl.SSLError as error:
                raise NotAuthenticated(
                    peer.fingerprint, error.reason or str(error)
                ) from error
            except OSError as error:
                raise NotAuthenticated(
                    peer.fingerprint, error.strerror or "it closed the connection"
                ) from error
        # The anchor allows nothing else; an assertion, since a library may change.
        assert secured.getpeercert(binary_form=True) == peer.certificate
    return Secured(secured, peer)


def _context(
    own: Credentials, peer: Introduced, *, server_side: bool
) -> ssl.SSLContext:
    side = ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
    # Made by hand: create_default_context() also trusts the system's authorities.
    context = ssl.SSLContext(side)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    # The end of the stream is judged by our own messages. Without this option OpenSSL
    # would refuse to write, too, once the other half of the link has ended.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_IGNORE_UNEXPECTED_EOF
    if server_side:
        context.num_tickets = 0
    context.check_hostname = False  # a name proves nothing that the pin does not
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cadata=peer.certificate)
    except ssl.SSLError as error:
        raise NotAuthenticated(peer.fingerprint, "it is no certificate") from error
    # OpenSSL's side of this takes nothing but the name of a file.
    with open(os.memfd_create("identity"), "wb", buffering=0) as file:
        file.write(own.pem)
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _wait(sock: socket.socket, event: int, deadline: float) -> None:
    left_s = deadline - time.monotonic()
    poll = select.poll()
    poll.register(sock, event)
    if left_s <= 0 or not poll.poll(-int(-left_s * 1000 // 1)):
        raise PeerTimedOut("the peer took too long to prove who it is")


def _record(buffers: Sequence[memoryview]) -> bytes:
    """What fits one record, from the first of ``buffers`` on."""
    held = bytearray()
    for buffer in buffers:
        held += buffer[: _RECORD_BYTES - len(held)]
        if len(held) == _RECORD_BYTES:
            break
    return bytes(held)


def _drop(buffers: list[memoryview], count: int) -> None:
    """Take ``count`` bytes off the front."""
    gone = 0
    while gone < len(buffers) and count >= len(buffers[gone]):
        count -= len(buffers[gone])
        gone += 1
    del buffers[:gone]
    if count:
        buffers[0] = buffers[0][count:]
