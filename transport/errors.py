"""What can go wrong between two agents.

None of these says where the process is: that follows from the state in which the
connection was, see ``states.on_trouble``.
"""


class TransportError(Exception):
    """Base of everything this package raises on purpose."""


class LocalProtocolError(TransportError):
    """We tried to say what may not be said now, or is malformed: a bug of ours.

    Nothing was sent and the state is as before.
    """


class RemoteProtocolError(TransportError):
    """The peer broke the protocol; nothing it says from here on is believed."""


class ConnectionLost(TransportError):
    """The link is gone, or was never there. What was in flight may have arrived."""


class PeerTimedOut(ConnectionLost):
    """The peer did not do in time what we waited for. The link is of no more use."""


class Interrupted(TransportError):
    """We were told to wait no longer. The link is good, and what we say is heard."""


class NotAuthenticated(TransportError):
    """The peer did not prove that it is who it says, or did not take us for who we are.

    ``fingerprint`` is what it claimed.
    """

    def __init__(self, fingerprint: str, why: str) -> None:
        self.fingerprint = fingerprint
        self.why = why
        super().__init__(f"the peer {fingerprint} did not get through TLS: {why}")
