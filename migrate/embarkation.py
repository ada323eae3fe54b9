"""What comes before the first word to an agent: that it is the right one, and may have
the process.
"""

import socket
from collections.abc import Sequence

from migrate import admission, doorway
from migrate.audit import Audit
from migrate.errors import NotConnected, Reason, Refused
from migrate.options import Peer
from migrate.state_directory import CannotKeep, StateDirectory
from precopy.errors import KernelError
from transport.channel import Channel
from transport.states import Role


def embark(sock: socket.socket, where: Peer, pids: Sequence[int]) -> Channel:
    """A channel over ``sock``, which is connected to ``where``. Owns it.

    Raises:
        NotConnected: it is another than the one that was pinned.
        Refused: our policy does not let them go there.
        TransportError: it did not come so far.
    """
    try:
        link, known = doorway.leave(sock, where)
    except doorway.NotTrusted as error:
        raise NotConnected(str(error)) from error
    try:
        audit = Audit(StateDirectory().path)
        reason = admission.require_departure(known, pids, audit)
    except CannotKeep as error:
        reason = Reason("audit", str(error))
    except (OSError, KernelError) as error:
        reason = Reason("audit", f"It could not be written down: {error}.")
    if reason is not None:
        link.close()
        raise Refused("It cannot go.", reasons=[reason])
    return Channel(link, Role.SOURCE)
