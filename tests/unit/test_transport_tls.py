"""TLS between pinned keys: who gets through, who does not, and what both are told."""

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from tempfile import NamedTemporaryFile

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tls_pair import Stranger, credentials_of, impostor, key, only, tls_pair
from transport import tls
from transport.errors import (
    ConnectionLost,
    NotAuthenticated,
    PeerTimedOut,
    RemoteProtocolError,
)
from transport.tls import (
    CERTIFICATE_BYTES_MAX,
    Credentials,
    Introduced,
    Purpose,
    Secured,
    as_destination,
    as_source,
)

SOON_S = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        yield near, far


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def answer(
    thread: ThreadPoolExecutor,
    far: socket.socket,
    own: Credentials,
    judge: Callable[[Introduced], None],
) -> Future[Secured]:
    return thread.submit(as_destination, far, own, judge, timeout_s=SOON_S)


def test_both_know_whom_they_have(
    ends: tuple[socket.socket, socket.socket], thread: ThreadPoolExecutor
) -> None:
    """The peer is the one who was pinned, over TLS 1.3, and no ticket is left."""
    a, b = key("a"), key("b")
    far = answer(thread, ends[1], b, only(a))
    with as_source(ends[0], a, Purpose.MIGRATE, only(b)) as near, far.result() as there:
        assert near.peer.fingerprint == b.fingerprint
        assert there.peer.fingerprint == a.fingerprint
        assert there.peer.purpose is Purpose.MIGRATE
        assert near.socket.version() == "TLSv1.3"
        there.sendmsg([memoryview(b"first")])
        received(near, 5)
        assert near.socket.session is None or not near.socket.session.has_ticket


@pytest.mark.parametrize("who", ["source", "destination"])
def test_an_impostor_is_found_out(
    who: str, ends: tuple[socket.socket, socket.socket], thread: ThreadPoolExecutor
) -> None:
    """To know a certificate is not to have its key, whichever side one is."""
    a, b, thief = key("a"), key("b"), key("thief")
    source = impostor(a, thief) if who == "source" else a
    destination = impostor(b, thief) if who == "destination" else b
    far = answer(thread, ends[1], destination, only(a))
    if who == "destination":
        with pytest.raises(NotAuthenticated, match=b.fingerprint):
            as_source(ends[0], source, Purpose.MIGRATE, only(b), timeout_s=SOON_S)
        with pytest.raises(NotAuthenticated):
            far.result()
        return
    # A client of TLS 1.3 is done before the server has judged it (RFC 8446, 4.4).
    with as_source(ends[0], source, Purpose.MIGRATE, only(b)) as near:
        with pytest.raises(NotAuthenticated, match=a.fingerprint):
            far.result()
        with pytest.raises((ssl.SSLError, ConnectionResetError, EOFError)):
            received(near, 1)


@pytest.mark.parametrize("who", ["source", "destination"])
def test_a_stranger_learns_nothing(
    who: str, ends: tuple[socket.socket, socket.socket], thread: ThreadPoolExecutor
) -> None:
    """Who is not wanted is not shaken hands with."""
    a, b, stranger = key("a"), key("b"), key("stranger")
    wanted_a = only(stranger if who == "source" else a)
    wanted_b = only(stranger if who == "destination" else b)
    far = answer(thread, ends[1], b, wanted_a)
    if who == "source":
        with pytest.raises(NotAuthenticated):
            as_source(ends[0], a, Purpose.MIGRATE, wanted_b, timeout_s=SOON_S)
        with pytest.raises(Stranger):
            far.result()
    else:
        with pytest.raises(Stranger):
            as_source(ends[0], a, Purpose.MIGRATE, wanted_b, timeout_s=SOON_S)
        with pytest.raises(NotAuthenticated):
            far.result()


def certificate(
    *, begin: int = 1970, end: int = 9999, curve: bool = False, usage: str | None = None
) -> str:
    """One that is not quite like ours, with its key; PEM."""
    private = (
        ec.generate_private_key(ec.SECP256R1())
        if curve
        else Ed25519PrivateKey.generate()
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "www")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(begin, 1, 1))
        .not_valid_after(datetime.datetime(end, 1, 1))
    )
    if usage is not None:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), critical=True
        )
    encoding = serialization.Encoding.PEM
    pem = private.private_bytes(
        encoding,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    algorithm = None if isinstance(private, Ed25519PrivateKey) else _SHA256
    return (pem + builder.sign(private, algorithm).public_bytes(encoding)).decode()


_SHA256 = hashes.SHA256()
_SERVER_ONLY = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH.dotted_string


@pytest.mark.parametrize(
    "odd",
    [{"end": 1990}, {"begin": 9000}, {"usage": _SERVER_ONLY}],
    ids=["expired", "not yet valid", "for web servers"],
)
def test_a_certificate_that_is_not_good_for_this(
    odd: dict[str, int | str],
    ends: tuple[socket.socket, socket.socket],
    thread: ThreadPoolExecutor,
) -> None:
    """Is refused even where it is pinned."""
    strange, b = credentials_of(certificate(**odd)), key("b")  # type: ignore[arg-type]
    far = answer(thread, ends[1], b, only(strange))
    with as_source(ends[0], strange, Purpose.MIGRATE, only(b)):
        with pytest.raises(NotAuthenticated, match=strange.fingerprint):
            far.result()


def talk_tls(
    near: socket.socket,
    own: Credentials,
    change: Callable[[ssl.SSLContext], None],
) -> ssl.SSLSocket:
    """As ``as_source``, with another idea of TLS."""
    tls._introduce(near, own, Purpose.MIGRATE, 1e18)
    head = tls._INTRODUCTION.size
    _, _, length = tls._INTRODUCTION.unpack(near.recv(head, socket.MSG_WAITALL))
    near.recv(length, socket.MSG_WAITALL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    change(context)
    secured = context.wrap_socket(near, do_handshake_on_connect=False)
    secured.settimeout(SOON_S)
    try:
        secured.do_handshake()
    except ssl.SSLError:
        secured.close()
        raise
    return secured


def test_nothing_older_than_tls_1_3(
    ends: tuple[socket.socket, socket.socket], thread: ThreadPoolExecutor
) -> None:
    """Not even for a peer whose key is good."""
    a, b = key("a"), key("b")

    def older(context: ssl.SSLContext) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with NamedTemporaryFile() as file:
            file.write(a.pem)
            file.flush()
            context.load_cert_chain(file.name)

    far = answer(thread, ends[1], b, only(a))
    with pytest.raises(ssl.SSLError):
        talk_tls(ends[0], a, older)
    with pytest.raises(NotAuthenticated, match="PROTOCOL"):
        far.result()


def test_a_certificate_is_not_optional(
    ends: tuple[socket.socket, socket.socket], thread: ThreadPoolExecutor
) -> None:
    """A good introduction without one is worth nothing."""
    a, b = key("a"), key("b")
    far = answer(thread, ends[1], b, only(a))
    with talk_tls(ends[0], a, lambda context: None):
        with pytest.raises(NotAuthenticated, match="CERTIFICATE"):
            far.result()


INTRODUCTION = tls._INTRODUCTION.pack(tls._MAGIC, 1, 3) + b"abc"


@pytest.mark.parametrize("cut", range(len(INTRODUCTION)))
def test_an_introduction_that_ends(
    cut: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    """At whatever byte, it is a link that was lost."""
    ends[0].sendall(INTRODUCTION[:cut])
    ends[0].close()
    with pytest.raises(ConnectionLost):
        as_destination(ends[1], key("b"), only(key("a")), timeout_s=SOON_S)
    assert ends[1].fileno() < 0


def test_an_introduction_that_does_not_come(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Is waited for so long and no longer; nor is one that drips."""
    with pytest.raises(PeerTimedOut):
        as_destination(ends[1], key("b"), only(key("a")), timeout_s=0.05)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        bytes(64),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        tls._INTRODUCTION.pack(tls._MAGIC, 0, 100),
        tls._INTRODUCTION.pack(tls._MAGIC, 3, 100),
        tls._INTRODUCTION.pack(tls._MAGIC, 1, 0),
        tls._INTRODUCTION.pack(tls._MAGIC, 1, CERTIFICATE_BYTES_MAX + 1),
        tls._INTRODUCTION.pack(tls._MAGIC, 1, 65535),
    ],
    ids=[
        *("http", "ssh", "zeros", "plain tls", "no purpose", "a strange purpose"),
        *("no certificate", "one byte too long", "the longest that can be said"),
    ],
)
def test_other_beginnings_are_no_introduction(
    said: bytes, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Each is refused at its head; nothing is answered."""
    ends[0].sendall(said)
    with pytest.raises(RemoteProtocolError):
        as_destination(ends[1], key("b"), only(key("a")), timeout_s=SOON_S)
    assert ended(ends[0])


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed without a word."""
    try:
        return not sock.recv(1)
    except ConnectionResetError:
        return True


def test_garbage_for_a_certificate(ends: tuple[socket.socket, socket.socket]) -> None:
    """Even where somebody has pinned it."""
    ends[0].sendall(INTRODUCTION)
    with pytest.raises(NotAuthenticated, match="no certificate"):
        as_destination(ends[1], key("b"), lambda found: None, timeout_s=SOON_S)


def received(link: Secured, count: int) -> bytes:
    """So many bytes."""
    link.socket.settimeout(SOON_S)
    held = b""
    while len(held) < count:
        room = memoryview(bytearray(count - len(held)))
        taken = link.recv_into(room)
        if not taken:
            raise EOFError
        held += room[:taken]
    return held


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Secured, Secured]]:
    near, far = tls_pair()
    with near, far:
        yield near, far


@given(sizes=st.lists(st.integers(0, 70_000), max_size=12))
def test_any_pieces_come_out_as_one_stream(
    pair: tuple[Secured, Secured], sizes: list[int]
) -> None:
    """However they are cut into records, and wherever the kernel had no room."""
    near, far = pair
    buffers = [bytes([n % 251]) * size for n, size in enumerate(sizes, 1)]
    views = [memoryview(buffer) for buffer in buffers if buffer]
    near.socket.settimeout(None)

    def send() -> None:
        while views:
            try:
                tls._drop(views, near.sendmsg(views))
            except BlockingIOError:
                continue

    sender = threading.Thread(target=send)
    sender.start()
    assert received(far, sum(sizes)) == b"".join(buffers)
    sender.join()


def test_a_record_that_found_no_room_is_sent_again() -> None:
    """In non-blocking mode, with pieces that are smaller and larger than a record."""
    near, far = tls_pair()
    with near, far:
        near.socket.setblocking(False)
        pieces = [b"head" * 100, b"x" * 100_000, b"tail" * 1000] * 100
        views = [memoryview(piece) for piece in pieces]
        blocked = 0
        whole = b"".join(pieces)
        with ThreadPoolExecutor(1) as pool:
            arrived = None
            while views:
                try:
                    tls._drop(views, near.sendmsg(views))
                except BlockingIOError:
                    blocked += 1
                    # Only now does anybody read: it must have been full once.
                    arrived = arrived or pool.submit(received, far, len(whole))
            assert blocked
            assert arrived is not None and arrived.result() == whole


def test_a_changed_byte_is_not_read() -> None:
    """Whoever stands in between cannot change what is said."""
    near, far = tls_pair()
    with near, far:
        record = b"\x17\x03\x03\x00\x20" + bytes(32)
        socket.socket.send(near.socket, record)
        far.socket.settimeout(SOON_S)
        with pytest.raises(ssl.SSLError):
            received(far, 1)


def test_who_hears_no_more_may_still_speak() -> None:
    """The end of one direction is not that of the other: a worker says goodbye."""
    near, far = tls_pair()
    with near, far:
        socket.socket.shutdown(far.socket, socket.SHUT_RD)
        with pytest.raises(EOFError):
            received(far, 1)
        assert far.sendmsg([memoryview(b"goodbye")]) == 7
        assert received(near, 7) == b"goodbye"
