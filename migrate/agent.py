"""The service on each host: it gives every arrival a worker process of its own.

A worker is a process, not a task: a crash or a stall of one never touches
another, it may drop its rights for good, and no interpreter is shared while a
process stands still. The agent itself reads no byte of what a peer sends.

What has arrived belongs to nobody here. The agent may stop, crash and start again,
and a process that was handed over runs on; what a worker left unfinished is
settled as its journal says (see ``recovery``). The agent also finishes what commands
on this host left that were to move a process away, and asks where it is for as long as
that is in doubt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from migrate import arrival_leaf, control, identity, limits, recovery
from migrate.config_directory import NotOurs
from migrate.kernel.cgroups import NoUnifiedHierarchy
from migrate.limits import Limits
from migrate.options import Peer
from migrate.peers import Peers
from migrate.recovery import Standing
from migrate.state_directory import VARIABLE, CannotKeep, StateDirectory
from transport.tls import Fingerprint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from structlog.typing import FilteringBoundLogger

# Family, and what bind(2) takes: host and port, for IPv6 also flow and scope.
Address: TypeAlias = tuple[socket.AddressFamily, tuple[Any, ...]]

STOP_GRACE_S: Final = 15.0  # more than a roll-back takes; then a worker is killed
BACKLOG: Final = 64
DEPARTURES_MAX: Final = 16  # for users of this host, at one time
DEPARTS: Final = (sys.executable, "-m", "migrate", "depart")
LOOK_AGAIN_S: Final = 1.0  # for journals that have lost their keeper
ASK_AGAIN_S: Final = (0.1, 5.0)  # about what is in doubt: at first, and at most


class CannotListen(Exception):
    """The address is not to be had; the message says what to do about it."""


class _Stranger:
    """One connection, among strangers until its worker says that it knows who it is."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._is_known = False
        agent.strangers += 1

    async def introduce(self, admission: trio.lowlevel.FdStream) -> None:
        """Wait for the worker's word; it may end without one."""
        if await admission.receive_some(1):
            self._is_known = True
            self._agent.strangers -= 1
            self._agent.admitted += 1

    def gone(self) -> None:
        """The connection, and its worker."""
        if self._is_known:
            self._agent.admitted -= 1
        else:
            self._agent.strangers -= 1


class Agent:
    """Listens until SIGTERM or SIGINT.

    ``worker`` is a command that takes ``--socket-fd N`` and ``--admitted-fd N``, and
    does what ``worker.py`` does. ``workers_max`` None: as agent.toml says.
    """

    def __init__(
        self,
        listen: Peer,
        *,
        workers_max: int | None,
        log: FilteringBoundLogger,
        state_directory: str | None = None,
        worker: Sequence[str] = (sys.executable, "-m", "migrate", "arrive"),
    ) -> None:
        self._listen = listen
        self._workers_max = workers_max
        self._log = log
        self._state_directory = state_directory
        self._worker = tuple(worker)
        self._limits = Limits()
        self.admitted = 0  # whose worker knows who it is
        self.strangers = 0  # the others
        self._departures = 0
        self._workers: set[trio.Process] = set()
        self._stopping = False

    async def serve(self) -> None:
        """Take arrivals until told to stop; then let the workers undo theirs.

        Raises:
            CannotListen: nothing was started.
        """
        own, known, self._limits = _settings()
        listeners = await self._listeners()
        try:
            state = StateDirectory(self._state_directory)
        except CannotKeep as error:
            raise CannotListen(str(error)) from error
        self._control = control.path()
        os.environ[VARIABLE] = str(state.path)  # our workers keep theirs there too
        await self._settle_the_past(state)
        told = trio.Event()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as whole:
                whole.start_soon(self._obey, signals, told)
                whole.start_soon(self._settle_what_comes, state)
                whole.start_soon(self._ask_for_ever, state)
                async with trio.open_nursery() as arrivals:
                    async with trio.open_nursery() as listening:
                        listening.start_soon(self._accept, listeners, arrivals)
                        await listening.start(self._hear_users, arrivals)
                        _say_where(listeners[0])
                        self._log.info("identity", fingerprint=own, peers=known)
                        await told.wait()
                        listening.cancel_scope.cancel()
                    self._stopping = True
                    arrivals.start_soon(self._end_workers)
                whole.cancel_scope.cancel()
        self._log.info("stopped")

    async def _obey(self, signals: AsyncIterator[int], told: trio.Event) -> None:
        # To the end: a signal that nobody took would be raised again by trio.
        async for number in signals:
            if not told.is_set():
                self._log.info("stopping", signal=signal.Signals(number).name)
            told.set()

    async def _listeners(self) -> list[trio.SocketListener]:
        addresses = await _addresses(self._listen)
        if self._listen.port == 0:
            # A free port on one address need not be free on another.
            addresses = addresses[:1]
        async with contextlib.AsyncExitStack() as on_failure:
            listeners = []
            for address in addresses:
                listener = await _listener(self._listen, address)
                listeners.append(await on_failure.enter_async_context(listener))
            on_failure.pop_all()
        return listeners

    async def _settle_the_past(self, state: StateDirectory) -> None:
        try:
            await self._settle(state)
            left = await trio.to_thread.run_sync(arrival_leaf.sweep)
        except NoUnifiedHierarchy as error:
            raise CannotListen(str(error)) from error
        for path in left:
            self._log.warning("settled what a dead agent left", cgroup=path)

    async def _settle(self, state: StateDirectory) -> None:
        """Finish what has lost its keeper, as far as that needs no answer."""
        for settled in await trio.to_thread.run_sync(
            lambda: tuple(recovery.settle_all(state))
        ):
            self._log.warning(
                "settled what was left",
                transaction=settled.name,
                side=settled.side.value,
                was=settled.before.name,
                now=settled.after.name,
            )

    async def _settle_what_comes(self, state: StateDirectory) -> None:
        while True:
            await trio.sleep(LOOK_AGAIN_S)
            try:
                await self._settle(state)
            except OSError:
                # It stays as it is, and is tried again.
                self._log.exception("not settled")

    async def _ask_for_ever(self, state: StateDirectory) -> None:
        """No time that passes answers instead of the destination."""
        first_s, longest_s = ASK_AGAIN_S
        pause_s = first_s
        while True:
            try:
                pending = tuple(recovery.in_doubt(state))
            except OSError:
                # Out of descriptors, say; they stay in doubt until we can look.
                self._log.exception("not looked for what is in doubt")
                pending = ()
            for record in pending:
                try:
                    standing = await trio.to_thread.run_sync(
                        recovery.ask, state, record, abandon_on_cancel=True
                    )
                except OSError:
                    self._log.exception("not settled", transaction=record.name)
                    continue
                if standing in (Standing.HERE, Standing.THERE, Standing.LOST):
                    self._log.warning(
                        "settled", transaction=record.name, standing=standing.value
                    )
            pause_s = min(2 * pause_s, longest_s) if pending else first_s
            await trio.sleep(pause_s if pending else LOOK_AGAIN_S)

    async def _accept(
        self, listeners: list[trio.SocketListener], arrivals: trio.Nursery
    ) -> None:
        # Closes the listeners when it is cancelled, and waits a little where the
        # kernel is out of descriptors.
        await trio.serve_listeners(self._arrival, listeners, handler_nursery=arrivals)

    async def _arrival(self, stream: trio.SocketStream) -> None:
        """One connection, from accept to the last trace of its worker."""
        log = self._log.bind(peer=_peer_name(stream.socket))
        if self.admitted >= (self._workers_max or self._limits.arrivals_max):
            log.warning("turned away", workers=self.admitted)
            await stream.aclose()
            return
        if self._limits.drops(self.strangers, limits.draw()):
            log.warning("dropped", strangers=self.strangers)
            await stream.aclose()
            return
        # From here on, and not only when there is a worker: a flood is faster.
        stranger = _Stranger(self)
        try:
            await self._work_for(stream, log, stranger)
        except Exception:
            # One arrival failed; the others and the next ones are not to.
            log.exception("arrival failed")
        finally:
            stranger.gone()

    async def _work_for(
        self,
        stream: trio.SocketStream,
        log: FilteringBoundLogger,
        stranger: _Stranger,
    ) -> None:
        hears, tells = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        async with trio.lowlevel.FdStream(hears) as admission:
            try:
                worker = await self._start_worker(stream.socket.fileno(), tells)
            finally:
                os.close(tells)
                await stream.aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stranger.introduce, admission)
                await self._attend(worker, log)
                nursery.cancel_scope.cancel()

    async def _attend(self, worker: trio.Process, log: FilteringBoundLogger) -> None:
        log = log.bind(worker=worker.pid)
        log.info("arrival")
        self._workers.add(worker)
        if self._stopping:
            worker.terminate()
        try:
            code = await worker.wait()
        finally:
            self._workers.discard(worker)
        await self._settle(StateDirectory(self._state_directory))
        log.info("worker ended", code=code)

    async def _start_worker(self, connection: int, tells: int) -> trio.Process:
        fds = ("--socket-fd", str(connection), "--admitted-fd", str(tells))
        return await trio.lowlevel.open_process(
            [*self._worker, *fds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(connection, tells),
            # Ctrl-C at the agent's terminal is for the agent.
            start_new_session=True,
        )

    def _door_for_users(self) -> socket.socket | None:
        if os.geteuid() != 0:
            return None  # we have no right to what is theirs
        try:
            ours = control.listen(self._control)
        except OSError as error:
            # Root can still use the command.
            self._log.warning("users are not heard", why=str(error))
            return None
        if ours is None:
            self._log.info("users are heard by another agent")
        return ours

    async def _hear_users(
        self,
        departures: trio.Nursery,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """What users of this host want moved."""
        ours = self._door_for_users()
        task_status.started()
        if ours is None:
            return
        try:
            with trio.socket.from_stdlib_socket(ours) as bound:
                listener = trio.SocketListener(bound)
                await trio.serve_listeners(
                    self._departure, [listener], handler_nursery=departures
                )
        finally:
            self._control.unlink(missing_ok=True)

    async def _departure(self, stream: trio.SocketStream) -> None:
        """One move for a user, from accept to the last trace of its worker."""
        log = self._log.bind(control=True)
        if self._departures >= DEPARTURES_MAX:
            log.warning("turned away", workers=self._departures)
            await stream.aclose()
            return
        self._departures += 1
        try:
            number = stream.socket.fileno()
            try:
                worker = await trio.lowlevel.open_process(
                    [*DEPARTS, "--socket-fd", str(number)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(number,),
                    start_new_session=True,
                )
            finally:
                await stream.aclose()
            await self._attend(worker, log)
        except Exception:
            # As with an arrival.
            log.exception("departure failed")
        finally:
            self._departures -= 1

    async def _end_workers(self) -> None:
        """Ask each worker to undo its arrival; kill the one that takes too long."""
        for worker in self._workers:
            worker.terminate()
        with trio.move_on_after(STOP_GRACE_S):
            for worker in tuple(self._workers):
                await worker.wait()
        for worker in self._workers:
            self._log.warning("killed: it did not stop", worker=worker.pid)
            worker.kill()


def _settings() -> tuple[Fingerprint, int, Limits]:
    """Who we are, how many are known, and our limits: better now than in each worker.
    What is missing is made.
    """
    try:
        own, known = identity.load().fingerprint, len(Peers.load().by_name)
        return own, known, limits.load()
    except NotOurs as error:
        raise CannotListen(str(error)) from error


async def _addresses(
    listen: Peer,
) -> list[Address]:
    try:
        found = await trio.socket.getaddrinfo(
            listen.host,
            listen.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        raise CannotListen(
            f"{listen.host} could not be looked up: {error.strerror}. "
            "Give an address of this host."
        ) from error
    return [(family, where) for family, *_, where in found]


async def _listener(listen: Peer, address: Address) -> trio.SocketListener:
    family, where = address
    bound = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await bound.bind(where)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise CannotListen(
            f"Listening on {listen} failed: {error.strerror}. "
            "Another agent may run already; else give another address."
        ) from error
    return trio.SocketListener(bound)


def _say_where(listener: trio.SocketListener) -> None:
    host, port = listener.socket.getsockname()[:2]
    print(f"listening on {Peer(host, port)}", file=sys.stderr, flush=True)


def _peer_name(connection: trio.socket.SocketType) -> str:
    try:
        host, port = connection.getpeername()[:2]
    except OSError:
        return "gone already"
    return str(Peer(host, port))
