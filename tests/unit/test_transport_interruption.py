"""Whoever is told to wait no longer: he hears what has come, and can still speak."""

import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.test_transport_channel import (
    SOON_S,
    to_precopy,
    to_ready,
    waiting,
)
from tests.unit.tls_pair import tls_pair
from tests.unit.transport_samples import TRANSACTION
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.errors import Interrupted
from transport.states import Role


@pytest.fixture
def sides() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    """A source and a destination that is ready, and its socket."""
    near, far = tls_pair()
    with Channel(near, Role.SOURCE) as source:
        with Channel(far, Role.DESTINATION) as destination:
            to_precopy(source, destination)
            to_ready(source, destination)
            yield source, destination, far.socket


def test_who_waits_is_interrupted(
    sides: tuple[Channel, Channel, socket.socket],
) -> None:
    """Once; then it may take its word back, and hear what comes of that."""
    source, destination, _ = sides
    with ThreadPoolExecutor(1) as threads:
        future = waiting(threads, lambda: destination.expect(m.Go))
        destination.interrupt()
        with pytest.raises(Interrupted):
            future.result(SOON_S)
    destination.send(m.Declined(TRANSACTION, b"", ()))
    source.send(m.Go())
    with pytest.raises(PeerGaveUp):
        source.expect(m.Accepted)
    source.send(m.Fin())
    assert destination.expect(m.Fin) == m.Fin()


def test_what_has_come_is_heard(sides: tuple[Channel, Channel, socket.socket]) -> None:
    """Go that was there before is obeyed; it is the next word that is not awaited."""
    source, destination, link = sides
    source.send(m.Go())
    assert select.select([link], [], [], SOON_S)[0]
    destination.interrupt()
    assert destination.expect(m.Go) == m.Go()
    with pytest.raises(Interrupted):
        destination.expect(m.Fin)


def test_who_has_closed_is_not_interrupted(
    sides: tuple[Channel, Channel, socket.socket],
) -> None:
    """A signal may come late; the number may be another file by then."""
    _, destination, _ = sides
    destination.close()
    destination.interrupt()
