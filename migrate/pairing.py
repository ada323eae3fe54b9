"""Two hosts that do not know each other yet agree on a code for people to compare.

Inside TLS, in which each has proved a key that nobody vouches for:

    source → destination   32 bytes: the digest of a number that it has drawn
    destination → source   32 bytes: a number that it has drawn
    source → destination   32 bytes: the number of before
    destination → source   1 byte: it is kept, for an operator to look at

The code is a digest of both keys and both numbers. Who stands in between would have to
show the same code on both ends; he has to choose his numbers before he knows the other
side's, so he has one try in 2^48 (Vaudenay, Secure Communications over Insecure
Channels Based on Short Authenticated Strings, 2005).
"""

import hashlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from migrate import config_directory, identity
from migrate.options import Peer
from transport import tls
from transport.errors import ConnectionLost, RemoteProtocolError
from transport.tls import Credentials, Fingerprint, Introduced, Purpose, Secured

ASK_S: Final = 10.0
PENDING_MAX: Final = 16
PENDING_S: Final = 600.0  # so long an operator has to look
FOLDER: Final = "pairings"

_NUMBER_BYTES: Final = 32
_CODE_BYTES: Final = 6  # three words
_COMMITMENT: Final = b"migrate-pair-commitment-1:"
_CODE: Final = b"migrate-pair-code-1:"
_KEPT: Final = b"\x01"


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """Whom we have met, and the code that both ends show."""

    certificate: bytes  # DER
    fingerprint: Fingerprint
    code: str


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody who wants to be known here."""

    fingerprint: Fingerprint
    code: str
    address: str
    age_s: float


def meet(where: Peer, own: Credentials) -> Acquaintance:
    """Ask the agent at ``where``; nothing is believed yet.

    Raises:
        TransportError: it did not come to a code.
    """
    try:
        sock = socket.create_connection(where, ASK_S)
    except OSError as error:
        raise ConnectionLost(f"connecting to {where}: {error.strerror}") from error

    def anybody(found: Introduced) -> None:
        """The code is for people to judge."""

    with tls.as_source(sock, own, Purpose.PAIR, anybody) as link:
        link.socket.settimeout(ASK_S)
        ours = secrets.token_bytes(_NUMBER_BYTES)
        _say(link, _commitment(ours))
        theirs = _hear(link, _NUMBER_BYTES)
        _say(link, ours)
        if _hear(link, 1) != _KEPT:
            raise RemoteProtocolError("the agent did not keep the pairing")
        found = link.peer
        code = _code(own.fingerprint, found.fingerprint, ours, theirs)
        return Acquaintance(found.certificate, found.fingerprint, code)


def answer(link: Secured, own: Fingerprint, state: Path) -> Pending:
    """The agent's part; what is kept for its operator.

    Raises:
        TransportError: it did not come to a code.
    """
    address = link.socket.getpeername()[0]
    link.socket.settimeout(ASK_S)
    commitment = _hear(link, _NUMBER_BYTES)
    ours = secrets.token_bytes(_NUMBER_BYTES)
    _say(link, ours)
    theirs = _hear(link, _NUMBER_BYTES)
    if not secrets.compare_digest(_commitment(theirs), commitment):
        raise RemoteProtocolError("it has drawn another number than it had said")
    code = _code(link.peer.fingerprint, own, theirs, ours)
    pending = Pending(link.peer.fingerprint, code, address, 0.0)
    _keep(pending, state)
    _say(link, _KEPT)
    return pending


def pending(state: Path) -> tuple[Pending, ...]:
    """Who has asked lately, the latest last."""
    found = []
    folder = state / FOLDER
    for file in folder.glob("*.json"):
        try:
            age_s = time.time() - file.stat().st_mtime
            said = json.loads(config_directory.read_ours(file))
        except FileNotFoundError:
            continue
        if age_s < PENDING_S:
            fingerprint = Fingerprint(said["fingerprint"])
            found.append(Pending(fingerprint, said["code"], said["address"], age_s))
    return tuple(sorted(found, key=lambda it: -it.age_s))


def settled(fingerprint: Fingerprint, state: Path) -> None:
    """It was decided upon."""
    _file(fingerprint, state).unlink(missing_ok=True)


def _keep(pending: Pending, state: Path) -> None:
    folder = state / FOLDER
    config_directory.make(folder)
    # The eldest gives way: who asks often only pushes himself out.
    by_age = sorted(folder.glob("*.json"), key=os.path.getmtime)
    for file in by_age[: max(0, len(by_age) - PENDING_MAX + 1)]:
        file.unlink(missing_ok=True)
    said = {
        "fingerprint": pending.fingerprint,
        "code": pending.code,
        "address": pending.address,
    }
    file = _file(pending.fingerprint, state)
    config_directory.write_ours(file, json.dumps(said), anew=False)


def _file(fingerprint: Fingerprint, state: Path) -> Path:
    return state / FOLDER / (fingerprint.removeprefix("SHA256:") + ".json")


def _commitment(number: bytes) -> bytes:
    return hashlib.sha256(_COMMITMENT + number).digest()


def _code(
    source: Fingerprint, destination: Fingerprint, theirs: bytes, ours: bytes
) -> str:
    said = f"{source}:{destination}:".encode()
    digest = hashlib.sha256(_CODE + said + theirs + ours).digest()
    return identity.spoken(digest[:_CODE_BYTES])


def _say(link: Secured, said: bytes) -> None:
    try:
        rest = memoryview(said)
        while rest:
            rest = rest[link.sendmsg([rest]) :]
    except OSError as error:
        raise ConnectionLost(f"pairing: {error}") from error


def _hear(link: Secured, count: int) -> bytes:
    room = memoryview(bytearray(count))
    filled = 0
    while filled < count:
        try:
            taken = link.recv_into(room[filled:])
        except OSError as error:
            raise ConnectionLost(f"pairing: {error}") from error
        if not taken:
            raise ConnectionLost("pairing: the peer closed the connection")
        filled += taken
    return bytes(room)
