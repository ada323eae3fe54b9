"""The process 1 of a host: it starts what it is told to, and reaps what dies.

It is forked off the keeper and never execs. A process that arrived by migration and
lost its parent becomes its child, and so its exit status is recorded here too.
"""

import os
import selectors
import signal
import socket
import stat
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from migrate.testbed import wire
from migrate.testbed.errors import TestBedError
from migrate.testbed.namespaces import (
    MountFlag,
    Namespace,
    die_with_parent,
    mount,
    unshare,
)

_WALL: Final = 0x40000000  # __WALL of waitpid(2): children of every clone() too


def live(
    host: wire.AddHost, cgroup: Path, requests: socket.socket, keeper: socket.socket
) -> NoReturn:
    """Become the init of ``host``: the whole life of a freshly forked process."""
    try:
        die_with_parent()
        _close_all_but(requests.fileno(), keeper.fileno())
        _enter_host(host, cgroup)
        network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        wire.send(keeper, wire.Done(), [network])
        os.close(network)
    except (OSError, TestBedError) as e:
        wire.send(keeper, wire.Failed(f"The host {host.name} cannot be made: {e}."))
        os._exit(1)
    # The keeper answers when the network stands. If it died before we asked to die
    # with it, we hear so here.
    if wire.receive(keeper) is not None:
        _Init(requests, keeper).serve()
    os._exit(0)


def _close_all_but(*kept: int) -> None:
    """Close what the keeper holds for others, so that its end is seen as its end."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _enter_host(host: wire.AddHost, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")
    os.setsid()
    os.chdir("/")
    unshare(Namespace.MOUNT | Namespace.UTS | Namespace.IPC | Namespace.NETWORK)
    socket.sethostname(host.name)
    mount("none", "/", "none", MountFlag.RECURSIVE | MountFlag.PRIVATE)
    # Looked up before private directories hide them, but in our own namespace:
    # mount(2) does not bind what belongs to another.
    shared = [
        (path, os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        for path in map(os.fsdecode, host.shared)
    ]
    for path in map(os.fsdecode, host.private):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        flags = MountFlag.NOSUID | MountFlag.NODEV
        mount("none", path, "tmpfs", flags, f"mode={mode:o}")
    for path, fd in shared:
        os.makedirs(path, exist_ok=True)
        bind = MountFlag.BIND | MountFlag.RECURSIVE
        mount(f"/proc/self/fd/{fd}", path, "none", bind)
        os.close(fd)
    safe = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
    mount("none", "/proc", "proc", safe)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(host.pid_first - 1))


class _Init:
    """The loop of process 1."""

    def __init__(self, requests: socket.socket, keeper: socket.socket) -> None:
        self._requests = requests
        self._keeper = keeper
        self._exits: list[wire.Exited] = []
        # Of the exits, those that no Wait was answered with yet; and the other way.
        self._unclaimed: defaultdict[int, deque[wire.Exited]] = defaultdict(deque)
        self._waiting: defaultdict[int, deque[socket.socket]] = defaultdict(deque)

    def serve(self) -> None:
        """Serve until the maker or the keeper is gone."""
        child_died, wakeup = socket.socketpair()
        for end in (child_died, wakeup):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as ready:
            for sock in (self._requests, self._keeper, child_died):
                ready.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is child_died:
                        child_died.recv(4096)
                        self._reap()
                    elif key.fileobj is self._keeper or not self._serve_one():
                        return

    def _serve_one(self) -> bool:
        packet = wire.receive(self._requests)
        if packet is None:
            return False
        answer, *fds = packet.fds
        with socket.socket(fileno=answer) as sock:
            try:
                self._do(packet.message, fds, sock)
            except OSError as e:
                where = "" if e.filename is None else f": {os.fsdecode(e.filename)}"
                _answer(sock, wire.Failed(f"{e.strerror}{where}."))
            except TestBedError as e:
                _answer(sock, wire.Failed(str(e)))
            finally:
                for fd in fds:
                    os.close(fd)
        return True

    def _do(
        self, message: wire.Message, fds: Sequence[int], answer: socket.socket
    ) -> None:
        match message:
            case wire.Spawn():
                pid = self._spawn(message, fds)
                # A zombie's number is not given to another before we reap it, so
                # whatever is waited for under this number is this child.
                self._unclaimed.pop(pid, None)
                self._found(pid, answer)
            case wire.Find(pid=pid):
                self._found(pid, answer)
            case wire.Wait(pid=pid):
                if self._unclaimed[pid]:
                    _answer(answer, self._unclaimed[pid].popleft())
                else:
                    self._waiting[pid].append(answer.dup())
            case wire.ListExits():
                _answer(answer, wire.Exits(self._exits))
            case wire.OpenSocket(family=family, kind=kind):
                with socket.socket(family, kind) as made:
                    _answer(answer, wire.Done(), [made.fileno()])
            case _:
                raise TestBedError(f"A host does not understand {message!r}.")

    def _spawn(self, spawn: wire.Spawn, fds: Sequence[int]) -> int:
        stdio = [
            _open(entry, writing=number > 0) if isinstance(entry, bytes) else entry
            for number, entry in enumerate(spawn.stdio)
        ]
        actions: list[tuple[int, int, int]] = []
        for number, (entry, source) in enumerate(zip(spawn.stdio, stdio, strict=True)):
            if source == wire.AS_STDOUT:
                source = 1
            elif not isinstance(entry, bytes):
                source = fds[source]
            actions.append((os.POSIX_SPAWN_DUP2, source, number))
        try:
            os.chdir(spawn.cwd)
            return os.posix_spawnp(
                os.fsdecode(spawn.argv[0]),
                spawn.argv,
                spawn.env,
                file_actions=actions,
                setsid=spawn.new_session,
                setsigmask=(),
                setsigdef=signal.valid_signals(),  # Python ignores some
            )
        finally:
            os.chdir("/")
            for entry, source in zip(spawn.stdio, stdio, strict=True):
                if isinstance(entry, bytes):
                    os.close(source)

    def _found(self, pid: int, answer: socket.socket) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            _answer(answer, wire.Found(pid), [pidfd], as_pid=pid)
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return
            if pid == 0:
                return
            exited = wire.Exited(pid, status)
            self._exits.append(exited)
            self._deliver(exited)

    def _deliver(self, exited: wire.Exited) -> None:
        """Give it to the one who has waited longest and still does."""
        while self._waiting[exited.pid]:
            with self._waiting[exited.pid].popleft() as sock:
                if _answer(sock, exited):
                    return
        self._unclaimed[exited.pid].append(exited)


def _open(path: bytes, *, writing: bool) -> int:
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if writing else os.O_RDONLY
    # Not to become the controlling terminal of init.
    return os.open(path, how | os.O_NOCTTY | os.O_CLOEXEC, 0o666)


def _answer(
    sock: socket.socket,
    message: wire.Message,
    fds: Sequence[int] = (),
    *,
    as_pid: int | None = None,
) -> bool:
    """Answer; False if whoever asked does not want to know any more."""
    try:
        wire.send(sock, message, fds, as_pid=as_pid)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def report_crash() -> NoReturn:
    """The last words of a process that must not run into the keeper's code."""
    sys.excepthook(*sys.exc_info())
    sys.stderr.flush()
    os._exit(1)
