"""What became of a migration of which the link was lost: the question and the answer.

Each question is a connection of its own. The source asks until it has heard; the
destination answers from its journal.
"""

import socket
from contextlib import AbstractContextManager
from typing import Self

from migrate import doorway
from migrate.options import Peer
from migrate.ownership import Verdict
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.errors import ConnectionLost, TransportError
from transport.states import Role


class Inquiry(AbstractContextManager["Inquiry"]):
    """One question, put to the agent at ``host``; ``verdict`` as the journal of
    ``epoch`` says. Closed at the end of the block.

    Raises:
        TransportError: there was no answer.
    """

    def __init__(
        self, host: str, port: int, transaction: bytes, *, timeout_s: float
    ) -> None:
        try:
            connection = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise ConnectionLost(f"connecting to {host}: {error}") from error
        self._timeout_s = timeout_s
        link, _ = doorway.leave(connection, Peer(host, port), timeout_s)
        self._channel = Channel(link, Role.SOURCE)
        try:
            self.verdict, self.epoch = self._ask(transaction)
        except BaseException:
            self._channel.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._channel.close()

    def conclude(self) -> bool:
        """Say that the answer was heard: whether the destination may now forget."""
        if self.verdict is Verdict.NOT_YET:
            return False
        try:
            self._channel.send(m.Fin(), timeout_s=self._timeout_s)
            self._channel.expect(m.FinAck, timeout_s=self._timeout_s)
        except TransportError:
            return False
        return True

    def _ask(self, transaction: bytes) -> tuple[Verdict, bytes]:
        channel, timeout_s = self._channel, self._timeout_s
        channel.expect(m.Welcome, timeout_s=timeout_s)
        channel.send(m.Query(m.VERSION_MAX, transaction), timeout_s=timeout_s)
        try:
            said = channel.expect(m.Accepted, m.Declined, m.NotYet, timeout_s=timeout_s)
        except PeerGaveUp:
            return Verdict.NOT_YET, b""
        match said:
            case m.Accepted(died=died, epoch=epoch):
                return (Verdict.DIED if died else Verdict.ACCEPTED), epoch
            case m.Declined(epoch=epoch):
                return Verdict.DECLINED, epoch
            case _:
                return Verdict.NOT_YET, b""


def answer(
    channel: Channel, transaction: bytes, verdict: Verdict, epoch: bytes
) -> bool:
    """Say ``verdict`` to who has asked; whether the source has heard it.

    Raises:
        TransportError: nobody listens any more.
    """
    match verdict:
        case Verdict.NOT_YET:
            channel.send(m.NotYet(transaction))
            channel.close(drain_s=1.0)
            return False
        case Verdict.DECLINED:
            channel.send(m.Declined(transaction, epoch, ()))
        case Verdict.ACCEPTED | Verdict.DIED:
            died = verdict is Verdict.DIED
            channel.send(m.Accepted(transaction, epoch, died, 0))
    channel.expect(m.Fin)
    return True
