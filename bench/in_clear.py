"""``migrate`` without TLS, to see what encryption costs. Only the bench has this.

``python -m bench.in_clear ARGUMENTS`` is ``migrate ARGUMENTS``, but that links stay as
they are and whoever connects is taken for the first peer that is known. What is
measured is the product; it has no such switch, and this must not become one.
"""

import socket
import sys
from typing import Any

from migrate import __main__, agent, doorway
from migrate.options import Peer
from migrate.peers import Known, Peers

_OURS = (sys.executable, "-m", "bench.in_clear", "arrive")


def _first() -> Known:
    return Known(*next(iter(Peers.load().by_name.items())))


def _leave(sock: socket.socket, where: Peer, timeout_s: float = 0.0) -> Any:  # noqa: ANN401  a plain socket where Secured is meant
    return sock, _first()


def _admit(sock: socket.socket) -> Any:  # noqa: ANN401  as above
    return sock, _first()


def main() -> None:
    """Be ``migrate``."""
    doorway.leave = _leave
    doorway.admit = _admit
    defaults = agent.Agent.__init__.__kwdefaults__
    assert defaults is not None
    defaults["worker"] = _OURS
    __main__.main()


if __name__ == "__main__":
    main()
