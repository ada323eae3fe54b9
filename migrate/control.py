"""The unix socket on which the agent of a host hears what its users ask for.

A user asks for a move in one message, with his stdout and stderr beside it. A worker of
the agent's makes it as root, says what there is to say on these two, and answers with
the exit code. Who asks is known from the kernel (SO_PEERCRED in unix(7)); what he may
ask for, ``caller`` finds out. Anything that he says after his question, the end of the
link included, calls the move off.
"""

import array
import os
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from migrate.arguments import PID_MAX, STATE_DIRECTORY_VARIABLE, Asked

DEFAULT: Final = "/run/migrate.socket"
VARIABLE: Final = "MIGRATE_CONTROL"
QUESTION_BYTES_MAX: Final = 1 << 16
PIDS_MAX: Final = 1000

_LENGTH: Final = struct.Struct("=I")
_CODE: Final = struct.Struct("=B")
_UCRED: Final = struct.Struct("=iII")  # struct ucred, unix(7)
_BACKLOG: Final = 16
_CALLS_OFF: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NoQuestion(ValueError):
    """What came is not what this version asks; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants, who that is, and where he wants to read of it."""

    asked: Asked
    uid: int
    gid: int
    stdout: int
    stderr: int


def path() -> Path:
    """Where it is, whether or not it is there.

    An agent with a state directory of its own has a socket of its own in there.
    """
    given, state = os.environ.get(VARIABLE), os.environ.get(STATE_DIRECTORY_VARIABLE)
    return Path(given or (f"{state}/control" if state else DEFAULT))


def listen(path: Path) -> socket.socket | None:
    """The socket at ``path``, for everybody to connect to; None: another agent has it.

    Raises:
        OSError: it cannot be made.
    """
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        else:
            return None
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def ask(asked: Asked) -> int | None:
    """The exit code of a move that the agent here makes for us; None: there is none.

    Raises:
        OSError: it went away without an answer; the move goes on, or is undone.
    """
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(path()))
        except OSError:
            return None
        body = msgspec.msgpack.encode(asked)
        rights = array.array("i", (1, 2)).tobytes()
        link.sendmsg(
            [_LENGTH.pack(len(body)) + body],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
        )
        for number in _CALLS_OFF:
            signal.signal(number, lambda *_: _call_off(link))
        answer = link.recv(_CODE.size)
    if len(answer) != _CODE.size:
        raise ConnectionResetError("the agent of this host went away")
    return int(_CODE.unpack(answer)[0])


def _call_off(link: socket.socket) -> None:
    try:
        link.send(b"x")
    except OSError:
        pass  # it has ended already, and the answer is there


def hear(link: socket.socket) -> Question:
    """The question on a connection that was accepted; the descriptors are ours.

    Raises:
        NoQuestion: it is none.
        OSError: it did not come.
    """
    _, uid, gid = _UCRED.unpack(
        link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    raw, fds, _, _ = socket.recv_fds(link, QUESTION_BYTES_MAX, 2)
    for fd in fds:
        os.set_inheritable(fd, False)
    try:
        if len(fds) != 2:
            raise NoQuestion("There is no stdout and stderr beside it.")
        return Question(_asked(link, raw), uid, gid, *fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _asked(link: socket.socket, raw: bytes) -> Asked:
    if len(raw) < _LENGTH.size:
        raise NoQuestion("It is cut short.")
    (size,) = _LENGTH.unpack_from(raw)
    if size > QUESTION_BYTES_MAX:
        raise NoQuestion("It is too long.")
    body = raw[_LENGTH.size :]
    while len(body) < size and (more := link.recv(size - len(body))):
        body += more
    return decode(body)


def decode(body: bytes) -> Asked:
    """What is asked for.

    Raises:
        NoQuestion: it makes no sense.
    """
    try:
        asked = msgspec.msgpack.decode(body, type=Asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoQuestion(
            f"It makes no sense here: {error}. Do both run the same release?"
        ) from error
    if not 1 <= len(asked.pids) <= PIDS_MAX or not all(
        1 <= pid <= PID_MAX for pid in asked.pids
    ):
        raise NoQuestion("There are no such processes.")
    return asked


def answer(link: socket.socket, code: int) -> None:
    """The last word."""
    try:
        link.send(_CODE.pack(code))
    except OSError:
        pass  # he has gone


def wait_for_objection(link: socket.socket) -> None:
    """Until he says one more thing, or goes."""
    try:
        link.recv(1)
    except OSError:
        pass  # gone, too
