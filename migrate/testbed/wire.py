"""What the maker of a bed, its keeper and the init of each host say to one another.

A request travels over a SOCK_SEQPACKET pair and brings along the socket on which
its answer is wanted, as its first descriptor. So answers may come late and in any
order, any thread may ask, and nobody has to sort anything.
"""

import array
import socket
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias, TypeVar

import msgspec

from migrate.testbed.errors import TestBedError

# One packet has to fit into the send buffer; the largest holds an environment.
MESSAGE_BYTES_MAX: Final = 1 << 20
_FDS_MAX: Final = 8
_FD = array.array("i")
_UCRED = struct.Struct("iII")  # struct ucred, unix(7)


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class AddHost(_Message, frozen=True):
    """Maker to keeper. Second descriptor: the init's end of the host's socket."""

    name: str
    address: str
    prefix_bits: int
    pid_first: int
    private: list[bytes]
    shared: list[bytes]


class HostAdded(_Message, frozen=True):
    pid: int
    cgroup: bytes


class RemoveHost(_Message, frozen=True):
    """Maker to keeper; answered by Done when nothing of the host is left."""

    name: str


class Spawn(_Message, frozen=True):
    """Maker to init; the other descriptors are those that ``stdio`` counts.

    An entry of ``stdio`` is a path to open inside the host, the index of one of
    those descriptors, or AS_STDOUT.
    """

    argv: list[bytes]
    env: dict[bytes, bytes]
    cwd: bytes
    new_session: bool
    stdio: tuple[bytes | int, bytes | int, bytes | int]


AS_STDOUT: Final = -1


class Find(_Message, frozen=True):
    """Maker to init: a handle of the process with this pid inside the host."""

    pid: int


class Found(_Message, frozen=True):
    """The answer to Spawn and Find, with a pidfd and the credentials of the process.

    The kernel translates the pid in the credentials to the receiver's namespace.
    """

    pid: int


class Wait(_Message, frozen=True):
    """Maker to init; answered by Exited as soon as init has reaped ``pid``."""

    pid: int


class Exited(_Message, frozen=True):
    pid: int
    status: int


class ListExits(_Message, frozen=True):
    """Maker to init; answered by Exits."""


class Exits(_Message, frozen=True):
    exits: list[Exited]


class OpenSocket(_Message, frozen=True):
    """Maker to init; answered by Done and the socket."""

    family: int
    kind: int


class Done(_Message, frozen=True):
    pass


class Failed(_Message, frozen=True):
    message: str


Message: TypeAlias = (
    AddHost
    | HostAdded
    | RemoveHost
    | Spawn
    | Find
    | Found
    | Wait
    | Exited
    | ListExits
    | Exits
    | OpenSocket
    | Done
    | Failed
)
_Answer = TypeVar("_Answer", bound=_Message)
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


class Packet(msgspec.Struct, frozen=True):
    """A message as it arrived. Its descriptors belong to whoever received it."""

    message: Message
    fds: list[int]
    sender_pid: int  # 0 where the socket does not ask for credentials


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither survives an exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(
    sock: socket.socket,
    message: Message,
    fds: Sequence[int] = (),
    *,
    as_pid: int | None = None,
) -> None:
    """Send one packet, in the name of the process ``as_pid`` if root says so."""
    ancillary: list[tuple[int, int, array.array[int] | bytes]] = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
    if as_pid is not None:
        # CAP_SYS_ADMIN may name another process, which may be a zombie: unix(7).
        credentials = _UCRED.pack(as_pid, 0, 0)
        ancillary.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials))
    sock.sendmsg([msgspec.msgpack.encode(message)], ancillary)


def receive(sock: socket.socket) -> Packet | None:
    """The next packet, or None when the other end is gone."""
    room = socket.CMSG_SPACE(_FDS_MAX * _FD.itemsize) + socket.CMSG_SPACE(_UCRED.size)
    data, ancillary, _, _ = sock.recvmsg(
        MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    sender_pid = 0
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender_pid, _, _ = _UCRED.unpack(content)
    if not data:
        return None
    return Packet(_decoder.decode(data), fds.tolist(), sender_pid)


class Question:
    """A request under way; a context manager that closes its end of the answer."""

    def __init__(
        self, to: socket.socket, message: Message, fds: Sequence[int] = ()
    ) -> None:
        self._answer, theirs = pair()
        with theirs:
            self._answer.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            try:
                send(to, message, [theirs.fileno(), *fds])
            except OSError as e:
                self._answer.close()
                raise TestBedError(
                    f"The test bed cannot be asked for {type(message).__name__}: "
                    f"{e.strerror}. It has been closed, or its keeper was killed."
                ) from e

    def __enter__(self) -> "Question":
        return self

    def __exit__(self, *exc: object) -> None:
        self._answer.close()

    def answer(
        self, expected: type[_Answer], timeout_s: float | None = None
    ) -> tuple[_Answer, Packet]:
        """Wait for the answer.

        Raises:
            TimeoutError: it did not come in time; it may still be waited for.
            TestBedError: the request failed, or nobody is left to answer.
        """
        self._answer.settimeout(timeout_s)
        packet = receive(self._answer)
        if packet is None:
            raise TestBedError("The test bed ended before it answered.")
        if isinstance(packet.message, Failed):
            raise TestBedError(packet.message.message)
        if not isinstance(packet.message, expected):
            raise TestBedError(f"The test bed gave an odd answer: {packet.message!r}.")
        return packet.message, packet


def ask(
    to: socket.socket,
    message: Message,
    expected: type[_Answer],
    fds: Sequence[int] = (),
) -> tuple[_Answer, Packet]:
    """Ask and wait for the answer, however long it takes."""
    with Question(to, message, fds) as question:
        return question.answer(expected)
