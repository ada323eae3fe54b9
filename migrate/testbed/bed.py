"""The bed itself: starts its keeper, and has hosts made."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import migrate
from migrate.testbed import wire
from migrate.testbed.errors import TestBedError
from migrate.testbed.host import Host
from migrate.testbed.keys import Keys

NETWORK: Final = "10.213.0"
PREFIX_BITS: Final = 24
HOSTS_MAX: Final = 30
# A process that moves keeps its pid, so no two hosts begin to count at the same.
PIDS_APART: Final = 1000
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_KEEPER_DEADLINE_S: Final = 30.0

# The keeper must run our code, not what the environment or the working directory
# puts in its way.
_KEEPER_CODE: Final = """\
import sys
sys.path.insert(0, sys.argv[1])
from migrate.testbed.keeper import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


class TestBed:
    """Throw-away hosts on one bridge; a context manager that takes them away again.

    Args:
        shared: directories that stay visible in every host, wherever they lie.
        private: directories over which every host has an empty file system.
    """

    __test__ = False  # the name begins like that of a test class

    def __init__(
        self,
        *,
        shared: Sequence[os.PathLike[str] | str] = (),
        private: Sequence[str] = ("/tmp", "/run"),
    ) -> None:
        self.hosts: Final[dict[str, Host]] = {}
        self._shared = [os.path.realpath(path) for path in shared]
        self._private = list(private)
        self._hosts_made = 0
        self._keys = Keys()
        self._requests, theirs = wire.pair()
        with ExitStack() as on_failure:
            on_failure.push(self._requests)
            self._keeper = _start_keeper(theirs)
            on_failure.pop_all()
        packet = wire.receive(self._requests)
        if packet is None or not isinstance(packet.message, wire.Done):
            self.close()
            raise TestBedError(
                packet.message.message
                if packet is not None and isinstance(packet.message, wire.Failed)
                else "The keeper of the test bed died at once; its error is above."
            )

    def __enter__(self) -> "TestBed":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def keeper_pid(self) -> int:
        """The process on which the life of the bed hangs, beside our own."""
        return self._keeper.pid

    def host(self, name: str) -> Host:
        """A new host with this name and the next free address."""
        if not _NAME.fullmatch(name) or name in self.hosts:
            raise TestBedError(
                f"A host cannot be named {name!r}: lower-case letters, digits and "
                "hyphens, and a name that no other host of this bed has or had."
            )
        if self._hosts_made == HOSTS_MAX:
            raise TestBedError(f"A test bed has {HOSTS_MAX} hosts at most.")
        self._hosts_made += 1
        host = Host(
            self._requests,
            name,
            f"{NETWORK}.{self._hosts_made}",
            prefix_bits=PREFIX_BITS,
            pid_first=self._hosts_made * PIDS_APART,
            private=self._private,
            shared=self._shared,
        )
        self.hosts[name] = host
        if "/run" in self._private:
            self._keys.give(host)
        return host

    def close(self) -> None:
        """Take all hosts away; waits until nothing of them is left.

        Raises:
            TestBedError: something is left.
        """
        self._requests.close()
        for host in self.hosts.values():
            host.forget()
        try:
            code = self._keeper.wait(_KEEPER_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            code = self._keeper.wait()
        if code != 0:
            raise TestBedError(
                f"The keeper of the test bed ended with {code}, so something of it "
                "may be left in its cgroup. The next test bed sweeps that away."
            )


def _start_keeper(requests: socket.socket) -> subprocess.Popen[bytes]:
    """Start it; closes ``requests``, its end of our socket."""
    own_pidfd = os.pidfd_open(os.getpid())
    try:
        with requests:
            ours = str(Path(migrate.__file__).parents[1])
            fds = (requests.fileno(), own_pidfd)
            return subprocess.Popen(
                [sys.executable, "-I", "-c", _KEEPER_CODE, ours, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for the maker
            )
    finally:
        os.close(own_pidfd)
