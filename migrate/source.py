"""The departure, told from top to bottom.

The story runs on the tracer thread, with a blocking connection and no event loop; trio
waits beside it for Ctrl-C and for the time that was allowed. Until Go has left, every
failure ends with the process running here as it did: each thing that was done to it is
undone by the `with` block that did it. After Go only the destination's answer counts.
"""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from threading import Event, Lock
from typing import Final

import trio

from migrate import dump, image, preflight
from migrate.errors import (
    InDoubt,
    MigrateError,
    NotConnected,
    Outcome,
    Reason,
    Refused,
    RefusedByDestination,
    RolledBack,
    TargetEnded,
)
from migrate.freeze import DidNotFreeze, Frozen, freeze, own_leaf
from migrate.image import FrozenTree, Index, Layout, Outline
from migrate.kernel import probes, procfs
from migrate.kernel.blocked_syscalls import Sleepers
from migrate.kernel.cgroups import Leaf
from migrate.kernel.pidfds import PidFd
from migrate.kernel.remote import Remote
from migrate.kernel.tracee import Tracee
from migrate.kinds import file_lock
from migrate.kinds.kind import CannotCarry, Source
from migrate.mapped_files import mapped_files
from migrate.options import MoveOptions, OnStall, PidPolicy, TrackerChoice
from migrate.preflight import memory as memory_rules
from migrate.progress import Progress
from migrate.report import DowntimeParts, MovedProcess, Report
from migrate.tracer_thread import TracerThread
from precopy.address_space import AddressSpace, Vma
from precopy.convergence import Convergence, Decision
from precopy.errors import GuardRegions, KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_set import PageSet
from precopy.page_stream import batches
from precopy.rounds import RoundRecord, split_dropped
from precopy.task_memory import TaskMemory
from precopy.tracker import DirtyTracker, Written
from precopy.tracker.everything import EverythingTracker
from precopy.tracker.uffd_wp import UffdWpTracker
from transport import channel as transport_channel
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.errors import ConnectionLost, RemoteProtocolError, TransportError

CONNECT_S: Final = 10.0
BUILD_S: Final = 60.0  # the destination builds the skeleton
APPLY_S: Final = 600.0  # the destination catches up with a round
T_FREEZE_S: Final = 5.0  # from the freeze to Ready; then the source thaws again
DOUBT_S: Final = 3.0  # after Go: so long until we say that nobody knows

_TRACKED_FLAGS: Final = frozenset({"um", "uw"})

_ROOT: Final = Index(0)
_PID_POLICIES: Final = {
    PidPolicy.AUTO: m.PidPolicy.AUTO,
    PidPolicy.KEEP: m.PidPolicy.KEEP,
    PidPolicy.ANY: m.PidPolicy.ANY,
    PidPolicy.NEW_NAMESPACE: m.PidPolicy.NEW_NAMESPACE,
}


async def depart(
    pids: Sequence[int],
    peer: tuple[str, int],
    options: MoveOptions,
    progress: Progress,
) -> Report:
    """Move the process to the agent at ``peer``; what happened.

    Raises:
        MigrateError: it did not arrive; the class says where it is, ``report`` how far
            it came.
    """
    reasons = [reason for pid in pids for reason in preflight.reasons(Pid(pid))]
    if len(pids) != 1:
        reasons.append(
            Reason("tree", "One process is moved at a time; name one pid per command.")
        )
    if reasons:
        raise Refused("It cannot go.", reasons=reasons)
    try:
        channel = await transport_channel.connect(*peer, deadline_s=CONNECT_S)
    except TransportError as error:
        raise NotConnected(
            f"Connecting to {peer[0]}:{peer[1]} failed: {error}.",
            way_out="Is an agent listening there? (migrate agent --listen HOST:PORT)",
        ) from error
    with channel:
        if options.dry_run:
            return Report(outcome=Outcome.CAN_GO)
        departure = Departure(Pid(pids[0]), channel, options, progress)
        async with TracerThread("tracer") as tracer:
            with trio.CancelScope() as allowed:
                if options.timeout_s is not None:
                    allowed.deadline = trio.current_time() + options.timeout_s
                return await tracer.run(departure.run, on_cancel=departure.call_off)
        raise AssertionError("a cancelled departure ends with an error of its own")


class CalledOff(Exception):
    """Somebody asked for the end of it, in time."""


class Departure:
    """One process on its way; everything but call_off() on the tracer thread."""

    def __init__(
        self, pid: Pid, channel: Channel, options: MoveOptions, progress: Progress
    ) -> None:
        self._pid = pid
        self._channel = channel
        self._options = options
        self._progress = progress
        self._called_off = Event()
        self._handing_over = Lock()
        self._sleepers = Sleepers(pid)
        self._rounds: list[RoundRecord] = []
        self._sent = PageSet.EMPTY
        self._downtime_s: float | None = None
        self._parts = DowntimeParts()
        self._began_s = time.monotonic()
        self._transaction = secrets.token_bytes(16)
        self._moved: tuple[MovedProcess, ...] = ()
        self._in_doubt = False
        self._tally = _Tally()

    def call_off(self) -> None:
        """Give up, unless the hand-over has begun. From any thread."""
        with self._handing_over:
            if not self._progress.handover_began.is_set():
                self._called_off.set()
                self._channel.shutdown()

    def run(self) -> Report:
        """From the first word to the last."""
        try:
            self._tell_story()
        except MigrateError as error:
            error.report = self._report()
            raise
        except Exception as error:
            translated = self._translate(error)
            if translated is None:
                self._channel.abort([m.Reason("source", None, None, "a bug here")])
                raise
            self._channel.abort(
                [m.Reason("source", self._pid, None, m.text(translated.message))]
            )
            translated.report = self._report()
            raise translated from error
        return self._report()

    def _tell_story(self) -> None:
        with ExitStack() as undo:
            self._pidfd = undo.enter_context(PidFd.open(self._pid))
            self._greet()
            self._progress.preparing("looking at the process")
            self._look(undo)
            self._progress.preparing("building its skeleton at the destination")
            self._offer()
            memory = undo.enter_context(TaskMemory(self._pid))
            self._run_rounds(memory)
            leaf = undo.enter_context(own_leaf(self._pid))
            # Moving it took a while: what was written meanwhile goes before the freeze.
            self._run_round(memory)
            self._stop_and_copy(leaf, memory)

    def _greet(self) -> None:
        welcome = self._channel.expect(m.Welcome)
        if not welcome.version_min <= m.VERSION_MAX <= welcome.version_max:
            raise NotConnected(
                f"The agent there speaks versions {welcome.version_min} to "
                f"{welcome.version_max} of the protocol, and this one {m.VERSION_MAX}."
            )
        self._channel.send(m.Hello(m.VERSION_MAX, self._transaction))

    def _look(self, undo: ExitStack) -> None:
        """One short stop: what is it made of, and start to track its writes."""
        self._sleepers.look()
        tracee = Tracee.seize(self._pid)
        try:
            self._sleepers.remaining(tracee)
            with tracee.remote() as remote:
                source = self._source(tracee, remote)
                self._process = dump.outline(source)
                self._tracker = _choose_tracker(self._options.tracker, source)
        finally:
            tracee.detach(cure=self._sleepers.cure)
        undo.callback(self._tracker.close)
        self._space = AddressSpace(self._process.vmas)

    def _offer(self) -> None:
        outline = image.encode(Outline((self._process,)))
        self._channel.send(m.Offer(outline, self._offered_options()))
        accepted = self._channel.expect(m.OfferAccepted, timeout_s=BUILD_S)
        self._moved = (
            MovedProcess(
                pid=self._pid,
                destination_pid=accepted.pids[0],
                destination_pid_in_namespace=self._process.pid,
                threads=len(self._process.tasks),
                comm=self._process.comm,
            ),
        )

    def _offered_options(self) -> m.Options:
        realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
        return m.Options(
            codecs=(m.Codec.NONE,),
            streams=1,
            tracker=self._tracker.name,
            pid_policy=_PID_POLICIES[self._options.pid_policy],
            monotonic_minus_realtime_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            - realtime,
            boottime_minus_realtime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            - realtime,
            page_bytes=PAGE_BYTES,
            machine=os.uname().machine,
            features=(),
        )

    def _run_rounds(self, memory: TaskMemory) -> None:
        limit_s = self._options.downtime_limit_s
        convergence = Convergence(limit_s, self._options.rounds_max)
        written = self._take()
        while True:
            record = self._send_round(memory, written)
            written = self._take()
            convergence.record(record, written.data.pages)
            self._progress.round_ended(record, convergence.estimate_s, limit_s)
            match convergence.decide():
                case Decision.STOP_AND_COPY:
                    break
                case Decision.STALLED:
                    self._stalled(convergence)
                    break
                case Decision.ANOTHER:
                    continue
        self._send_round(memory, written)

    def _stalled(self, convergence: Convergence) -> None:
        if self._options.on_stall is OnStall.ABORT:
            raise RolledBack(
                f"It writes faster than the link carries: after {convergence.rounds} "
                f"rounds the downtime would still be {convergence.estimate_s:.3f} s, "
                f"and {self._options.downtime_limit_s:.3f} s are allowed.",
                way_out="Raise --downtime-limit or choose --on-stall stop-and-copy.",
            )

    def _run_round(self, memory: TaskMemory) -> None:
        self._send_round(memory, self._take())

    def _take(self, *, final: bool = False) -> Written:
        """What was written since the last time; the destination follows the layout."""
        new = self._look_at_mappings(final=final)
        change = self._space.changes_to(new)
        _require_carried(self._pid, change.added)
        self._space = new
        written = self._tracker.take(new, final=final)
        self._dropped = split_dropped(written.dropped, new)
        renewed = _parts(new, self._dropped.remapped)
        self._sent -= change.emptied | self._dropped.remapped
        if change or renewed:
            files = mapped_files(self._pid, (*change.added, *renewed))
            layout = Layout.of(change, renewed, files)
            self._channel.send(m.Layout(_ROOT, image.encode(layout)))
        return written

    def _look_at_mappings(self, *, final: bool) -> AddressSpace:
        """The mappings now, with their flags.

        /proc/PID/smaps, which has the flags, walks all page tables. In the freeze it
        is read only if the plain list has changed; advice (madvise(2)) given since
        the last round to a mapping that is otherwise the same is not seen then.
        """
        if final:
            plain = procfs.read_maps(self._pid)
            known = [replace(vma, flags=frozenset()) for vma in self._space.vmas]
            if plain.vmas == tuple(known):
                return self._space
        return AddressSpace(_without_our_mark(procfs.read_smaps(self._pid)))

    def _send_round(self, memory: TaskMemory, written: Written) -> RoundRecord:
        record = RoundRecord(len(self._rounds) + 1)
        began_s = time.monotonic()
        wire = self._channel.traffic.bytes_sent
        self._progress.round_started(record.number, written.data.pages)
        self._send_pages(memory, written, record, report=True)
        tally, self._tally = self._tally, _Tally()
        self._channel.send(
            m.RoundEnd(record.number, tally.batches, tally.pages, tally.bytes)
        )
        self._channel.expect(m.RoundDone, timeout_s=APPLY_S)
        record.bytes_wire = self._channel.traffic.bytes_sent - wire
        record.duration_s = time.monotonic() - began_s
        self._rounds.append(record)
        return record

    def _send_pages(
        self,
        memory: TaskMemory,
        written: Written,
        record: RoundRecord,
        *,
        report: bool = False,
    ) -> None:
        began_s = time.monotonic()
        found: list[PageSet] = []
        for batch in batches(
            memory,
            _ROOT,
            written.data,
            sent=self._sent,
            anonymous=self._space.anonymous_ranges(),
            zeros=self._dropped.zeros & self._sent,
        ):
            if self._called_off.is_set():
                raise CalledOff
            self._channel.send_pages(batch.encode(), timeout_s=APPLY_S)
            found.append(batch.data)
            self._tally.count(batch.pages, batch.data.bytes)
            record.pages += batch.data.pages
            record.zero_pages += batch.zeros.pages
            record.bytes_raw += batch.data.bytes
            if report and self._tally.batches % 64 == 0:
                spent_s = max(time.monotonic() - began_s, 1e-6)
                self._progress.round_progress(record.pages, record.bytes_raw / spent_s)
        self._sent |= PageSet.of(run for pages in found for run in pages)

    def _stop_and_copy(self, leaf: Leaf, memory: TaskMemory) -> None:
        self._progress.freezing()
        began_s = time.monotonic()
        with freeze(leaf, self._pid, self._sleepers) as frozen:
            stopped_s = time.monotonic()
            self._require_still_alone()
            locks = self._send_state(frozen)
            try:
                dumped_s = time.monotonic()
                written = self._take(final=True)
                scanned_s = time.monotonic()
                self._send_pages(memory, written, RoundRecord(0))
                self._channel.send(m.End(*self._tally))
                sent_s = time.monotonic()
                self._channel.expect(m.Ready, timeout_s=T_FREEZE_S)
                ready_s = time.monotonic()
                self._hand_over(frozen, leaf)
            except BaseException:
                if locks is not None and not frozen.handed_over:
                    with frozen.injecting() as remote:
                        source = self._source(frozen.tracee, remote)
                        file_lock.reacquire(source, locks)
                raise
            ended_s = time.monotonic()
            frozen.tracee.kill()
            frozen.tracee.reap()
        self._downtime_s = ended_s - began_s
        self._parts = DowntimeParts(
            freeze=stopped_s - began_s,
            dump=dumped_s - stopped_s,
            scan=scanned_s - dumped_s,
            send=sent_s - scanned_s,
            restore=ready_s - sent_s,
            handover=ended_s - ready_s,
        )
        self._progress.arrived()
        self._say_goodbye()

    def _source(self, tracee: Tracee, remote: Remote) -> Source:
        return Source(self._pid, tracee, remote, self._pidfd, procfs.fds(self._pid))

    def _require_still_alone(self) -> None:
        """Nothing may have been born since the preflight that would stay behind.

        Raises:
            CannotCarry: it has children now.
        """
        if children := procfs.children(self._pid):
            raise CannotCarry(
                "child",
                f"pid {self._pid} has started a child meanwhile (pid {children[0]}); "
                "a family cannot be moved yet. Try again when it has ended.",
                pid=self._pid,
            )

    def _send_state(self, frozen: Frozen) -> file_lock.FileLocks | None:
        """Everything but memory; afterwards its file locks are nobody's."""
        states = frozen.tracee.states()
        with frozen.injecting() as remote:
            source = self._source(frozen.tracee, remote)
            record = dump.frozen(source, self._process, states, frozen.timed)
            locks: file_lock.FileLocks | None = file_lock.dump(source)
            if locks is not None:
                file_lock.release(source, locks)
        self._channel.send(m.State(image.encode(FrozenTree((record,)))))
        return locks

    def _hand_over(self, frozen: Frozen, leaf: Leaf) -> None:
        """Go, and wait for the answer: it is not ours to decide any more."""
        with self._handing_over:
            if self._called_off.is_set():
                raise CalledOff
            self._progress.handing_over()
        frozen.handed_over = True
        try:
            self._channel.send(m.Go())
            self._channel.expect(m.Accepted, timeout_s=DOUBT_S)
        except PeerGaveUp:
            # Declined: it never ran there and never will.
            frozen.handed_over = False
            raise
        except TransportError as error:
            raise InDoubt(
                f"The hand-over of pid {self._pid} was sent and the answer lost: "
                f"{error}.",
                way_out=(
                    f"Look for it at the destination. If it runs there, end this copy: "
                    f"kill -9 {self._pid}. If it certainly never will, thaw this one: "
                    f"echo 0 into cgroup.freeze of {leaf.path}."
                ),
            ) from error

    def _say_goodbye(self) -> None:
        try:
            self._channel.send(m.Fin())
            self._channel.expect(m.FinAck)
        except TransportError:
            # It runs there; the destination only cannot forget about us.
            return

    def _report(self) -> Report:
        return Report(
            outcome=Outcome.ARRIVED,
            transaction=self._transaction.hex(),
            tracker=self._tracker.name if hasattr(self, "_tracker") else None,
            processes=self._moved,
            downtime_s=self._downtime_s,
            downtime_parts_s=self._parts,
            total_s=time.monotonic() - self._began_s,
            rounds=tuple(self._rounds),
            bytes_raw=sum(record.bytes_raw for record in self._rounds),
            bytes_wire=self._channel.traffic.bytes_sent,
            resident_bytes=self._sent.bytes,
        )

    def _translate(self, error: Exception) -> MigrateError | None:
        """The outcome that an error stands for; None: it is a bug of ours."""
        if self._called_off.is_set():
            return RolledBack("The move was called off.")
        match error:
            case TaskVanished():
                return self._vanished()
            case PeerGaveUp(message=m.Refused()):
                return RefusedByDestination(
                    "The destination refused it.", reasons=_heard(error)
                )
            case PeerGaveUp():
                return RolledBack(f"The destination gave up: {error}.")
            case ConnectionLost() | RemoteProtocolError():
                return RolledBack(
                    f"The connection failed: {error}.", way_out="Start the move again."
                )
            case CannotCarry() if not self._moved:
                reason = Reason(error.kind, error.message, error.pid, error.fd)
                return Refused("It cannot go.", reasons=[reason])
            case CannotCarry() | GuardRegions():
                return RolledBack(f"Something came up that cannot go: {error}")
            case DidNotFreeze():
                return RolledBack("A thread of it would not stop.")
            case KernelError() if not self._moved:
                reason = Reason("kernel", f"{error}: it cannot be traced.", self._pid)
                return Refused("It cannot go.", reasons=[reason])
            case KernelError() | OSError():
                return RolledBack(f"The kernel refused: {error}.")
        return None

    def _vanished(self) -> MigrateError:
        try:
            if procfs.stat(self._pid).state not in "ZX":
                return RolledBack(
                    "The process executed another program meanwhile.",
                    way_out="Start the move again.",
                )
        except TaskVanished:
            pass
        return TargetEnded(f"Process {self._pid} ended by itself during the move.")


class _Tally:
    """What was sent since the last round ended."""

    def __init__(self) -> None:
        self.batches = 0
        self.pages = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[int]:
        return iter((self.batches, self.pages, self.bytes))

    def count(self, pages: int, size_bytes: int) -> None:
        self.batches += 1
        self.pages += pages
        self.bytes += size_bytes


def _choose_tracker(choice: TrackerChoice, source: Source) -> DirtyTracker:
    if choice is TrackerChoice.EVERYTHING:
        return EverythingTracker(source.pid)
    if choice is TrackerChoice.AUTO and not probes.userfaultfd_wp_async():
        return EverythingTracker(source.pid)
    remote = source.remote
    fd = remote.syscall("userfaultfd", UffdWpTracker.FLAGS)
    try:
        uffd = source.pidfd.getfd(fd)
    finally:
        remote.syscall("close", fd)
    return UffdWpTracker(source.pid, uffd)


def _require_carried(pid: Pid, added: tuple[Vma, ...]) -> None:
    """Mappings that have come since the preflight are held to the same rules.

    Raises:
        CannotCarry: one of them cannot be made again.
    """
    for reason in memory_rules.of_mappings(pid, added):
        raise CannotCarry(reason.kind, reason.message, pid=pid)


def _without_our_mark(space: AddressSpace) -> Iterator[Vma]:
    """The mappings without the flag of userfaultfd, which is our tracker's doing."""
    for vma in space.vmas:
        yield replace(vma, flags=vma.flags - _TRACKED_FLAGS)


def _parts(space: AddressSpace, pages: PageSet) -> tuple[Vma, ...]:
    """The mappings cut to these pages."""
    return tuple(
        vma.part(start, end)
        for vma in space.vmas
        for start, end in pages & PageSet.of([(vma.start, vma.end)])
    )


def _heard(error: PeerGaveUp) -> list[Reason]:
    return [Reason(r.kind, r.message, r.pid, r.fd) for r in error.reasons]
