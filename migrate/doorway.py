"""How a connection becomes one with a host that we know: the way out and the way in.

Who is connected to must have the key that was pinned for the address; who connects must
have a key that is known here. Nothing is learnt on the way: a first connection carries
the whole memory of a process, so there is no trust on first use.
"""

import socket
from typing import Final

from migrate import identity
from migrate.config_directory import NotOurs
from migrate.identity import words
from migrate.options import Peer
from migrate.patience import patient
from migrate.peers import Known, Peers
from transport import tls
from transport.errors import NotAuthenticated, TransportError
from transport.tls import HANDSHAKE_S, Fingerprint, Introduced, Purpose, Secured


class NotTrusted(TransportError):
    """There is a connection, and no reason to believe it. The message says what to do,
    in sentences.
    """


class UnknownKey(NotTrusted):
    """Nobody has said whose key this is."""

    def __init__(self, where: Peer, fingerprint: Fingerprint) -> None:
        self.where: Final = where
        self.fingerprint: Final = fingerprint
        super().__init__(
            f"The agent at {where} has the key {fingerprint} "
            f"({words(fingerprint)}), and no key is pinned for that address. Compare "
            f"it with what `migrate identity` says there, then: "
            f"migrate pair {where} --fingerprint {fingerprint}"
        )


class ChangedKey(NotTrusted):
    """Another key than the one that was pinned."""

    def __init__(
        self, where: Peer, pinned: tuple[Fingerprint, ...], found: Fingerprint
    ) -> None:
        super().__init__(
            f"The agent at {where} has the key {found} ({words(found)}). Pinned is "
            + " or ".join(f"{key} ({words(key)})" for key in pinned)
            + ". Either somebody stands in between, or the host has a new identity: "
            "ask whoever runs it. If it has, remove the old one from peers.d and pair "
            "again."
        )


class UnknownVisitor(NotTrusted):
    """Somebody connects whose key is not known here."""

    def __init__(self, fingerprint: Fingerprint, address: str) -> None:
        self.fingerprint: Final = fingerprint
        self.address: Final = address
        super().__init__(
            f"The key {fingerprint} is not known here. If it is to be: "
            f"migrate pair --accept {fingerprint}"
        )


# The worker that answers has to start, and to load its libraries.
_SHAKE_HANDS_S: Final = patient(HANDSHAKE_S)


def leave(
    sock: socket.socket, where: Peer, timeout_s: float = _SHAKE_HANDS_S
) -> tuple[Secured, Known]:
    """``sock``, which is connected to ``where``, once it is the right one, and who that
    is. Owns it.

    Raises:
        NotTrusted: it is not known to be.
        TransportError: it did not come so far.
    """
    try:
        own = identity.load()
        peers = Peers.load()
    except NotOurs as error:
        sock.close()
        raise NotTrusted(str(error)) from error

    def judge(found: Introduced) -> None:
        pinned = peers.pinned(where)
        if not pinned:
            raise UnknownKey(where, found.fingerprint)
        if found.fingerprint not in pinned:
            raise ChangedKey(where, pinned, found.fingerprint)

    try:
        link = tls.as_source(sock, own, Purpose.MIGRATE, judge, timeout_s=timeout_s)
    except NotAuthenticated as error:
        raise NotTrusted(
            f"The agent at {where} ended the handshake ({error.why}). Perhaps this "
            f"host is not known there; then say there: "
            f"migrate pair --accept {own.fingerprint}"
        ) from error
    known = peers.named(link.peer.fingerprint)
    assert known is not None, "it is pinned"
    return link, known


def admit(sock: socket.socket) -> tuple[Secured, Known | None]:
    """``sock``, which was accepted, and who it is; None if he wants to be paired.

    Raises:
        NotTrusted: nobody knows him.
        TransportError: it did not come so far.
    """
    try:
        own = identity.load()
        peers = Peers.load()
    except NotOurs as error:
        sock.close()
        raise NotTrusted(str(error)) from error
    known: list[Known] = []
    address = _address(sock)

    def judge(found: Introduced) -> None:
        try:
            named = peers.named(found.fingerprint)
        except NotOurs as error:
            raise NotTrusted(str(error)) from error
        if named is not None:
            known.append(named)
        elif found.purpose is Purpose.MIGRATE:
            raise UnknownVisitor(found.fingerprint, address)

    link = tls.as_destination(sock, own, judge, timeout_s=_SHAKE_HANDS_S)
    wants_to_come = link.peer.purpose is Purpose.MIGRATE
    return link, known[0] if wants_to_come else None


def _address(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return "gone already"
