"""The process that keeps a bed: it makes the hosts, and cleans up behind the maker.

It is started by the maker of the bed and watches him. A process of its own, because
prctl(2) PR_SET_PDEATHSIG tells of the death of a *thread*: the inits of the hosts
have our only thread for a parent, whatever threads the maker has. When the maker is
gone, however he went, everything is killed and removed; when we are killed, the inits
die with us, and only empty cgroup directories stay for the next bed to sweep.
"""

import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from migrate.testbed import cgroup_tree, init, network, wire
from migrate.testbed.errors import TestBedError
from migrate.testbed.namespaces import Namespace, enter, unshare


class _Resident(msgspec.Struct, frozen=True):
    pid: int
    cgroup: Path
    lifeline: socket.socket  # its init ends when this does


def main(requests_fd: int, maker_pidfd: int) -> None:
    """Keep a bed until its maker closes ``requests_fd`` or dies."""
    for fd in (requests_fd, maker_pidfd):
        os.set_inheritable(fd, False)
    with socket.socket(fileno=requests_fd) as requests:
        try:
            keeper = _Keeper()
        except (OSError, TestBedError) as e:
            wire.send(requests, wire.Failed(str(e)))
            return
        wire.send(requests, wire.Done())
        try:
            keeper.serve(requests, maker_pidfd)
        finally:
            keeper.close()


class _Keeper:
    def __init__(self) -> None:
        self._hosts: dict[str, _Resident] = {}
        self._ports = 0
        try:
            unshare(Namespace.NETWORK)
        except PermissionError as e:
            raise TestBedError(
                "The test bed cannot make namespaces: it needs root (CAP_SYS_ADMIN)."
            ) from e
        network.make_bridge()
        cgroup_tree.sweep()
        self._network: Final = network.own_namespace()
        self._pids: Final = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._tree: Final = cgroup_tree.make_tree()

    def serve(self, requests: socket.socket, maker_pidfd: int) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(requests, selectors.EVENT_READ)
            # The socket alone would not do: a child that the maker forked holds it.
            ready.register(maker_pidfd, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is not requests or not self._serve_one(requests):
                        return

    def _serve_one(self, requests: socket.socket) -> bool:
        packet = wire.receive(requests)
        if packet is None:
            return False
        answer, *fds = packet.fds
        with socket.socket(fileno=answer) as sock:
            try:
                reply = self._do(packet.message, fds)
            except (OSError, TestBedError) as e:
                reply = wire.Failed(str(e))
            finally:
                for fd in fds:
                    os.close(fd)
            try:
                wire.send(sock, reply)
            except BrokenPipeError:
                pass  # the maker died while he asked; the next select() says so
        return True

    def _do(self, message: wire.Message, fds: list[int]) -> wire.Message:
        match message:
            case wire.AddHost():
                return self._add(message, fds[0])
            case wire.RemoveHost(name=name):
                self._remove(name)
                return wire.Done()
            case _:
                raise TestBedError(f"The keeper does not understand {message!r}.")

    def _add(self, host: wire.AddHost, requests_fd: int) -> wire.HostAdded:
        cgroup = self._tree / host.name
        cgroup.mkdir()
        lifeline, theirs = wire.pair()
        with theirs:
            resident = _Resident(
                self._fork_init(host, cgroup, requests_fd, theirs), cgroup, lifeline
            )
        self._hosts[host.name] = resident
        try:
            self._connect(host, lifeline)
        except (OSError, TestBedError):
            self._remove(host.name)
            raise
        return wire.HostAdded(resident.pid, os.fsencode(cgroup))

    def _fork_init(
        self, host: wire.AddHost, cgroup: Path, requests_fd: int, end: socket.socket
    ) -> int:
        # A task may choose the pid namespace of its children only while they would
        # be born into its own (EINVAL otherwise): so go back each time. setns(2)
        unshare(Namespace.PID)
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    init.live(host, cgroup, socket.socket(fileno=requests_fd), end)
                finally:
                    init.report_crash()
            return pid
        finally:
            enter(self._pids, Namespace.PID)

    def _connect(self, host: wire.AddHost, lifeline: socket.socket) -> None:
        packet = wire.receive(lifeline)
        if packet is None:
            raise TestBedError(f"The init of the host {host.name} died at once.")
        if isinstance(packet.message, wire.Failed):
            raise TestBedError(packet.message.message)
        (namespace,) = packet.fds
        try:
            self._ports += 1
            network.plug_in(
                f"port{self._ports}",
                namespace,
                self._network,
                address=host.address,
                prefix_bits=host.prefix_bits,
            )
        finally:
            os.close(namespace)
        wire.send(lifeline, wire.Done())

    def _remove(self, name: str) -> None:
        resident = self._hosts.pop(name, None)
        if resident is None:
            return
        cgroup_tree.kill(resident.cgroup)
        os.kill(resident.pid, signal.SIGKILL)
        # An init is reaped after all others of its pid namespace: pid_namespaces(7).
        os.waitpid(resident.pid, 0)
        resident.lifeline.close()
        cgroup_tree.kill_and_remove(resident.cgroup)

    def close(self) -> None:
        """Kill all, then remove all."""
        cgroup_tree.kill(self._tree)
        for name in list(self._hosts):
            self._remove(name)
        cgroup_tree.kill_and_remove(self._tree)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
