"""Two ends of TLS in one program, with keys made for it."""

import functools
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from migrate import config_directory, identity
from transport.tls import (
    Credentials,
    Introduced,
    Purpose,
    Secured,
    as_destination,
    as_source,
)


@functools.cache
def key(name: str) -> Credentials:
    """The same for the same name, while the program runs."""
    with TemporaryDirectory() as folder:
        return identity.load(Path(folder))


def credentials_of(pem: str) -> Credentials:
    """Whatever ``pem`` is, as one would prove it."""
    with TemporaryDirectory() as folder:
        config_directory.write_ours(Path(folder) / identity.FILE, pem, anew=True)
        return identity.load(Path(folder))


def only(wanted: Credentials) -> Callable[[Introduced], None]:
    """A judge who lets that key pass, and no other."""

    def judge(found: Introduced) -> None:
        if found.fingerprint != wanted.fingerprint:
            raise Stranger(found.fingerprint)

    return judge


class Stranger(Exception):
    """It is another key."""


def tls_pair() -> tuple[Secured, Secured]:
    """Source and destination, pinned to one another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    a, b = key("a"), key("b")
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(as_destination, far, b, only(a))
        source = as_source(near, a, Purpose.MIGRATE, only(b))
        return source, answered.result()


def impostor(claimed: Credentials, proved: Credentials) -> Credentials:
    """Says that it is ``claimed`` and can only prove ``proved``."""
    return Credentials(claimed.certificate, proved.pem)
