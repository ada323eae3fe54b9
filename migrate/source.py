"""The departure, told from top to bottom.

The story runs on the tracer thread, with a blocking connection and no event loop; trio
waits beside it for Ctrl-C and for the time that was allowed. Until Go has left, every
failure ends with the process running here as it did: each thing that was done to it is
undone by the `with` block that did it. After Go only the destination's answer counts.
"""

import gc
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import inf
from threading import Event, Lock
from typing import Final

import trio

from migrate import (
    arrival_leaf,
    diagnosis,
    dump,
    image,
    lent_locks,
    offer,
    preflight,
    recovery,
    tracking,
)
from migrate.caller import Caller, not_to_be_looked_into
from migrate.departing_tree import DepartingTree
from migrate.departure_journal import DepartureJournal, Unanswered
from migrate.doubt import ask_for_ever
from migrate.embarkation import embark
from migrate.errors import (
    InDoubt,
    MigrateError,
    NotConnected,
    Outcome,
    Reason,
    Refused,
    RolledBack,
    RolledBackWithoutLocks,
)
from migrate.failpoints import reach
from migrate.freeze import Frozen, freeze_between_births, own_leaf
from migrate.image import FrozenProcess, FrozenTree, Outline
from migrate.kernel import cgroups, probes
from migrate.kernel.cgroups import Leaf
from migrate.kernel.remote import Remote
from migrate.kinds import file_lock
from migrate.kinds.file_lock import FileLocks
from migrate.kinds.kind import CannotCarry, Source
from migrate.options import MoveOptions, Peer
from migrate.outgoing_tree import OutgoingTree
from migrate.page_sender import PageSender
from migrate.patience import patient
from migrate.pre_copy import PreCopy
from migrate.preflight import supervision
from migrate.progress import Progress
from migrate.report import DowntimeParts, MovedProcess, Report
from migrate.state_directory import CannotKeep, StateDirectory
from migrate.tracer_thread import TracerThread
from precopy.errors import TaskVanished
from precopy.ids import Pid
from transport import channel as transport_channel
from transport import messages as m
from transport.channel import Channel
from transport.errors import TransportError

CONNECT_S: Final = patient(10.0)
BUILD_S: Final = patient(60.0)  # the destination builds the skeleton
# From the last page to Ready; then the source thaws again.
T_FREEZE_S: Final = patient(5.0)
# About each other move in doubt, before this one begins.
ASK_OTHERS_S: Final = patient(5.0)
# After Go: so long until we say that nobody knows.
DOUBT_S: Final = patient(3.0)

_IS_IT_AN_AGENT: Final = (
    "Is an agent listening there? (migrate agent --listen HOST:PORT)"
)


async def depart(
    pids: Sequence[int],
    peer: tuple[str, int],
    options: MoveOptions,
    progress: Progress,
    *,
    caller: Caller | None = None,
) -> Report:
    """Move the process to the agent at ``peer``; what happened.

    ``caller`` is the user for whom we do it; None: for ourselves.

    Raises:
        MigrateError: it did not arrive; the class says where it is, ``report`` how far
            it came.
    """
    # What is in the way of another user's process is not for everybody.
    if strange := not_to_be_looked_into(caller, map(Pid, pids)):
        raise Refused("It cannot go.", reasons=strange)
    reasons = [reason for pid in pids for reason in preflight.reasons(Pid(pid))]
    if not options.supervised:
        reasons += [r for pid in pids for r in supervision.reasons(Pid(pid))]
    reasons += tracking.reasons(options.tracker)
    if not (freezer := probes.cgroup_freezer()):
        reasons.append(Reason("freezer", f"Nothing can be frozen: {freezer.why_not}"))
    if len(pids) != 1:
        reasons.append(
            Reason("tree", "One process is moved at a time; name one pid per command.")
        )
    if reasons:
        raise Refused("It cannot go.", reasons=reasons)
    allowed_s = inf if options.timeout_s is None else options.timeout_s
    deadline = trio.current_time() + allowed_s
    too_late = f"It did not arrive within the {allowed_s:g} s allowed."
    with trio.CancelScope(deadline=deadline) as connecting:
        channel = await _connected(Peer(*peer), pids)
    if connecting.cancelled_caught:
        raise RolledBack(too_late)
    with channel:
        if options.dry_run:
            return Report(outcome=Outcome.CAN_GO)
        state = await trio.to_thread.run_sync(_state_directory)
        departure = Departure(Pid(pids[0]), peer, channel, state, options, progress)
        departure.caller = caller

        def call_off() -> None:
            late = trio.current_time() >= deadline
            departure.call_off(too_late if late else "The move was called off.")

        try:
            async with TracerThread("tracer") as tracer:
                with trio.CancelScope(deadline=deadline):
                    return await tracer.run(departure.run, on_cancel=call_off)
        except InDoubt as doubt:
            progress.in_doubt(str(doubt))
            await ask_for_ever(departure.journal, doubt)
            progress.arrived()
            return departure.report()
        raise AssertionError("a cancelled departure ends with an error of its own")


async def _connected(peer: Peer, pids: Sequence[int]) -> Channel:
    try:
        sock = await transport_channel.connect(*peer, deadline_s=CONNECT_S)
        return await trio.to_thread.run_sync(
            embark, sock, peer, pids, abandon_on_cancel=True
        )
    except TransportError as error:
        raise NotConnected(
            f"There is no connection: {error}.", way_out=_IS_IT_AN_AGENT
        ) from error


def _state_directory() -> StateDirectory:
    """Ours, with everything in it finished that a dead command left.

    Where somebody has to be asked for that, he is asked once.
    """
    try:
        state = StateDirectory()
        tuple(recovery.settle_all(state))
    except CannotKeep as error:
        reason = Reason("journal", str(error))
        raise Refused("It cannot go.", reasons=[reason]) from error
    for record in recovery.in_doubt(state):
        recovery.ask(state, record, timeout_s=ASK_OTHERS_S)
    return state


def _taken_back(remote: Remote, locks: FileLocks) -> list[CannotCarry]:
    """What could not be."""
    return lent_locks.patiently(lambda: file_lock.reacquire(remote, locks))


class CalledOff(Exception):
    """Somebody asked for the end of it, in time."""


class Departure:
    """One process on its way; everything but call_off() on the tracer thread."""

    def __init__(
        self,
        pid: Pid,
        peer: tuple[str, int],
        channel: Channel,
        state: StateDirectory,
        options: MoveOptions,
        progress: Progress,
    ) -> None:
        self._pid = pid
        self._peer = peer
        self._channel = channel
        self._state = state
        self._options = options
        self._progress = progress
        self._called_off = Event()
        self._why_called_off = ""
        self._handing_over = Lock()
        self._memory: OutgoingTree | None = None
        self._downtime_s: float | None = None
        self._parts = DowntimeParts()
        self._began_s = time.monotonic()
        self._transaction = secrets.token_bytes(16)
        self._moved: tuple[MovedProcess, ...] = ()
        self.caller: Caller | None = None  # for whom, if not for ourselves

    def call_off(self, why: str) -> None:
        """Give up, unless the hand-over has begun. From any thread."""
        with self._handing_over:
            if not self._progress.handover_began.is_set():
                self._why_called_off = why
                self._called_off.set()
                self._channel.shutdown()

    def run(self) -> Report:
        """From the first word to the last."""
        try:
            self._tell_story()
        except MigrateError as error:
            error.report = self.report()
            raise
        except Exception as error:
            translated = self._diagnose(error)
            if translated is None:
                self._channel.abort([m.Reason("source", None, None, "a bug here")])
                raise
            self._channel.abort(
                [m.Reason("source", self._pid, None, m.text(translated.message))]
            )
            translated.report = self.report()
            raise translated from error
        return self.report()

    def _tell_story(self) -> None:
        with ExitStack() as undo:
            self.journal = undo.enter_context(
                DepartureJournal(self._state, self._transaction, self._pid, self._peer)
            )
            self._greet()
            reach("source.greeted")
            self._progress.preparing("looking at the process")
            tree = DepartingTree(self._pid, self._options.tracker, self._channel, undo)
            self._tree = tree
            outline = tree.look()
            # Traced by now: their numbers cannot pass on to others.
            self._require_callers()
            reach("source.tracked")
            self._progress.preparing("building its skeleton at the destination")
            self._offer(outline)
            reach("source.offered")
            sender = undo.enter_context(self._sender())
            memory = OutgoingTree(tree, self._channel, sender, self._proceed)
            self._memory = memory
            rounds = PreCopy(
                memory,
                tree.brakes,
                self._options,
                self._progress,
                round_trip_s=self._channel.ping(),
                threads=sum(len(process.tasks) for process in outline.processes),
            )
            rounds.run()
            reach("source.rounds.sent")
            name = arrival_leaf.departure(self._transaction.hex()[:8])
            home = cgroups.current(self._pid)
            self.journal.freezing(cgroups.leaf_path(home, name))
            leaf = undo.enter_context(own_leaf(self._pid, name))
            reach("source.leaf.made")
            # For good: a collection takes milliseconds, and this command ends soon.
            gc.collect()
            gc.freeze()
            gc.disable()
            # All this took a while: what was written meanwhile goes before the freeze.
            rounds.once_more()
            tree.brakes.release()
            self._stop_and_copy(leaf, memory)

    def _require_callers(self) -> None:
        """All that go are the caller's to move, as they are now."""
        pids = [member.pid for member in self._tree.members]
        if strange := not_to_be_looked_into(self.caller, pids):
            raise RolledBack(strange[0].message)

    def _sender(self) -> PageSender:
        return PageSender(
            self._channel,
            self._proceed,
            compress=self._options.compress,
            rate_bytes_per_s=self._options.bandwidth,
        )

    def _proceed(self, after_s: float = 0.0) -> None:
        """Go on after so many seconds, unless it is called off. From any thread."""
        if self._called_off.wait(after_s) if after_s else self._called_off.is_set():
            raise CalledOff

    def _greet(self) -> None:
        try:
            welcome = self._channel.expect(m.Welcome, timeout_s=CONNECT_S)
        except TransportError as error:
            if self._called_off.is_set():
                raise
            raise NotConnected(
                f"Nobody answered as an agent does: {error}.", way_out=_IS_IT_AN_AGENT
            ) from error
        if not welcome.version_min <= m.VERSION_MAX <= welcome.version_max:
            raise NotConnected(
                f"The agent there speaks versions {welcome.version_min} to "
                f"{welcome.version_max} of the protocol, and this one {m.VERSION_MAX}."
            )
        self._channel.send(m.Hello(m.VERSION_MAX, self._transaction))

    def _offer(self, outline: Outline) -> None:
        options = self._offered_options(outline)
        self._channel.send(m.Offer(image.encode(outline), options))
        accepted = self._channel.expect(m.OfferAccepted, timeout_s=BUILD_S)
        if len(accepted.pids) != len(outline.processes):
            raise RolledBack("The destination has built another tree.")
        self._moved = tuple(
            MovedProcess(
                pid=process.pid,
                destination_pid=pid,
                destination_pid_in_namespace=process.pid,
                threads=len(process.tasks),
                comm=process.comm,
            )
            for pid, process in zip(accepted.pids, outline.processes, strict=True)
        )

    def _offered_options(self, outline: Outline) -> m.Options:
        return offer.options(outline, self._options, self._tree.root.tracker.name)

    def _stop_and_copy(self, leaf: Leaf, memory: OutgoingTree) -> None:
        self._progress.freezing()
        sleepers = {member.pid: member.sleepers for member in self._tree.members}
        with freeze_between_births(leaf, sleepers, self._proceed) as frozen:
            stopped_s = time.monotonic()
            self._tree.settle(frozen)
            self._require_callers()
            reach("source.frozen")
            with self._lending_locks(frozen) as lent:
                self._send_state(frozen, lent)
                reach("source.state.sent")
                dumped_s = time.monotonic()
                taken = memory.take(final=True)
                scanned_s = time.monotonic()
                memory.send_last(taken)
                reach("source.pages.sent")
                sent_s = time.monotonic()
                ready = self._channel.expect(m.Ready, timeout_s=T_FREEZE_S)
                ready_s = time.monotonic()
                reach("source.ready.heard")
                self._hand_over(frozen, ready)
            ended_s = time.monotonic()
            self.journal.arrived()
            frozen.kill()
            self._tree.leave_objects()
            reach("source.killed")
        self._downtime_s = ended_s - frozen.began_s
        self._parts = DowntimeParts(
            freeze=stopped_s - frozen.began_s,
            dump=dumped_s - stopped_s,
            scan=scanned_s - dumped_s,
            send=sent_s - scanned_s,
            restore=ready_s - sent_s,
            handover=ended_s - ready_s,
        )
        self._progress.arrived()
        self._say_goodbye()

    @contextmanager
    def _lending_locks(self, frozen: Frozen) -> Iterator[dict[Pid, FileLocks]]:
        """Locks that are given up in here are taken again, unless it is handed over."""
        lent: dict[Pid, FileLocks] = {}
        try:
            yield lent
        except BaseException:
            if lent and not frozen.handed_over:
                self._take_back(frozen, lent)
            raise

    def _take_back(self, frozen: Frozen, lent: Mapping[Pid, FileLocks]) -> None:
        # The copy over there may have them by now, until it is ended.
        self._channel.abort([m.Reason("source", self._pid, None, "called off")])
        try:
            with frozen.injecting() as remotes:
                lost = [
                    one
                    for pid, locks in lent.items()
                    for one in _taken_back(remotes[pid], locks)
                ]
        finally:
            # Not to be taken once more: it may give one up by itself from now on.
            self.journal.given_back()
        if lost:
            raise RolledBackWithoutLocks(
                "The move failed, and its locks were taken meanwhile: "
                f"{lost[0].message}"
            ) from lost[0]

    def _send_state(self, frozen: Frozen, lent: dict[Pid, FileLocks]) -> None:
        """Everything but memory; afterwards its file locks are nobody's."""
        states = {pid: tracee.states() for pid, tracee in frozen.tracees.items()}
        records: list[FrozenProcess | None] = []
        with frozen.injecting() as remotes:
            for member, source in self._tree.sources(frozen, remotes):
                if member is None or source is None:
                    records.append(None)
                    continue
                records.append(
                    dump.frozen(
                        source,
                        member.process,
                        states[member.pid],
                        frozen.timed[member.pid],
                        member.known,
                    )
                )
                self._lend_locks(source, lent)
            tree = FrozenTree(tuple(records), self._tree.ended())
        self._tree.tell_objects()
        self._channel.send(m.State(image.encode(tree)))

    def _lend_locks(self, source: Source, lent: dict[Pid, FileLocks]) -> None:
        locks = file_lock.dump(source)
        if locks is None:
            return
        lent[source.pid] = locks
        self.journal.lend(lent_locks.encode(lent))
        file_lock.release(source, locks)

    def _hand_over(self, frozen: Frozen, ready: m.Ready) -> None:
        """Go, and wait for the answer: it is not ours to decide any more."""
        with self._handing_over:
            if self._called_off.is_set():
                raise CalledOff
            if any(member.pidfd.has_ended() for member in self._tree.members):
                # A frozen process can be killed, and its end is its own.
                raise TaskVanished(self._pid)
            self._progress.handing_over()
        try:
            self.journal.hand_over(self._channel, ready, timeout_s=DOUBT_S)
        except Unanswered as error:
            name = self._transaction.hex()
            raise InDoubt(
                f"The hand-over of pid {self._pid} was sent and the answer lost: "
                f"{error}.",
                way_out=(
                    "Whoever runs next on this host, an agent or a command, asks "
                    f"again; or see: migrate resolve {name}."
                ),
            ) from error
        finally:
            frozen.handed_over = self.journal.is_handed_over

    def _say_goodbye(self) -> None:
        try:
            self._channel.send(m.Fin())
            reach("source.fin.said")
            self._channel.expect(m.FinAck)
        except TransportError:
            # It runs there; whoever runs next on this host tells the destination.
            return
        self.journal.forgotten()

    def _diagnose(self, error: Exception) -> MigrateError | None:
        if self._called_off.is_set():
            return RolledBack(self._why_called_off)
        return diagnosis.of(error, self._pid, offered=bool(self._moved))

    def report(self) -> Report:
        """What was done so far."""
        rounds = self._memory.rounds if self._memory else []
        return Report(
            outcome=Outcome.ARRIVED,
            transaction=self._transaction.hex(),
            tracker=self._tree.root.tracker.name if self._moved else None,
            processes=self._moved,
            downtime_s=self._downtime_s,
            downtime_parts_s=self._parts,
            total_s=time.monotonic() - self._began_s,
            rounds=tuple(rounds),
            bytes_raw=sum(record.bytes_raw for record in rounds),
            bytes_wire=self._channel.traffic.bytes_sent,
            resident_bytes=self._memory.sent_bytes if self._memory else 0,
        )
