"""The process that receives one arrival: started by the agent, which waits for it.

It starts while a source waits, so it imports neither trio nor the command line, and
its log only when there is something to say.
"""

import os
import resource
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate.errors import MigrateError, Outcome
from transport.errors import TransportError

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from migrate.doorway import UnknownVisitor
    from transport.tls import Secured


def main(arguments: Sequence[str]) -> int:
    """Receive on an inherited socket, ``--socket-fd N``; the exit code. A byte into
    ``--admitted-fd N`` tells the agent that it is known who that is.

    SIGTERM asks for a roll-back: if Go has come before it the process arrives, and if
    not, the peer is told that it never will.
    """
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    socket_fd, admitted_fd = int(given["--socket-fd"]), int(given["--admitted-fd"])
    # They are not for the process that arrives, nor for what it starts.
    os.set_inheritable(socket_fd, False)
    os.set_inheritable(admitted_fd, False)
    # Nothing of what comes is for a file of the host. The process that arrives gets
    # its own limit back (``kinds.limits``).
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        return _receive(socket.socket(fileno=socket_fd), admitted_fd)
    except MigrateError as error:
        outcome = error.outcome
        _log().warning("not arrived", outcome=outcome.value, why=error.message)
        return outcome.exit_code
    except TransportError as error:
        _log().warning("not let in", why=str(error))
        return Outcome.NOT_CONNECTED.exit_code
    except Exception:
        _log().exception("bug")
        return Outcome.OUR_BUG.exit_code


def _receive(connection: socket.socket, admitted_fd: int) -> int:
    from migrate import doorway

    # Until it is known who that is, nothing is there to undo: SIGTERM just ends us.
    try:
        link, peer = doorway.admit(connection)
    except doorway.UnknownVisitor as error:
        _deny(error)
        raise
    with link:
        if peer is None:
            return _pair(link)
        os.write(admitted_fd, b"1")
        os.close(admitted_fd)
        from transport.channel import Channel
        from transport.states import Role

        with Channel(link, Role.DESTINATION) as channel:
            signal.signal(signal.SIGTERM, lambda *_: channel.interrupt())
            from migrate import destination

            return destination.arrive(channel, peer)


def _deny(stranger: "UnknownVisitor") -> None:
    from migrate.audit import Audit
    from migrate.policy import Decision
    from migrate.state_directory import StateDirectory

    decision = Decision(False, "Its key is not known here.")
    audit = Audit(StateDirectory().path)
    audit.write(
        "connection", decision, peer=stranger.fingerprint, address=stranger.address
    )


def _pair(link: "Secured") -> int:
    from migrate import identity, pairing
    from migrate.state_directory import StateDirectory

    met = pairing.answer(link, identity.load().fingerprint, StateDirectory().path)
    _log().warning(
        "asks to be paired",
        fingerprint=met.fingerprint,
        address=met.address,
        code=met.code,
        accept=f"migrate pair --accept {met.fingerprint}",
    )
    return 0


def _log() -> "FilteringBoundLogger":
    from migrate import logs

    return logs.start(verbose=False).bind(worker=os.getpid())
