"""The arrival, told from top to bottom.

Runs in a process of its own (see agent.py), on one thread: it traces the skeleton,
and ptrace obeys only the thread that seized. Until the source says Go, the process has
never run here, and whatever goes wrong ends the skeleton; the source runs on. At Go
nothing is left to do that could fail but to thaw.
"""

import gc
import os
import time
from contextlib import ExitStack, closing
from typing import Final

from migrate import arrival_leaf, image, inquiry, limits, recovery, resume
from migrate.admission import Admission, Allowance, TooMuch
from migrate.arrival_journal import ArrivalJournal
from migrate.audit import Audit
from migrate.errors import Reason, RefusedByDestination, RolledBack
from migrate.failpoints import reach
from migrate.image import FrozenTree, ImageError, Outline
from migrate.kernel import cgroups
from migrate.kernel.cgroups import Leaf
from migrate.kernel.pidfds import PidFd
from migrate.kinds.kind import CannotCarry, Target
from migrate.mapping import CannotBuild
from migrate.peers import Known
from migrate.skeleton import Skeleton
from migrate.state_directory import CannotKeep, StateDirectory
from precopy.errors import KernelError, PageStreamError, PrecopyError
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_sink import PageSink
from precopy.page_stream import BatchLimits, PageBatch
from precopy.task_memory import TaskMemory
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.compression import Unpacker
from transport.errors import TransportError
from transport.states import Role
from transport.tls import Secured

ROUND_S: Final = 600.0  # a round may throttle itself; the peer's silence may not last
READY_HOLD_S: Final = 120.0  # so long a finished copy waits for its Go
_CLOCKS_APART_NS: Final = 1_000_000_000

_UNBUILDABLE: Final = (
    *(CannotBuild, CannotCarry, ImageError, PrecopyError, OSError, TooMuch),
)


def arrive(link: Secured, visitor: Known) -> int:
    """Receive one process tree, or say what became of one; 0 when that was done.

    Raises:
        RefusedByDestination: it was not let in.
        RolledBack: it was given up on the way; nothing of it is left here.
    """
    channel = Channel(link, Role.DESTINATION)
    with channel:
        try:
            state = StateDirectory()
            audit = Audit(state.path)
            ours = Admission(visitor, channel.peer_host, limits.load(), audit)
            _Arrival(channel, state, ours).run()
        except TransportError as error:
            raise RolledBack(f"The source was lost: {error}.") from error
    return 0


class _Tally:
    """What a round has brought."""

    def __init__(self) -> None:
        self.batches = 0
        self.pages = 0
        self.bytes = 0

    def count(self, batch: PageBatch) -> None:
        self.batches += 1
        self.pages += batch.pages
        self.bytes += batch.data.bytes


class _Arrival:
    def __init__(
        self, channel: Channel, state: StateDirectory, admission: Admission
    ) -> None:
        self._channel = channel
        self._state = state
        self._admission = admission
        self._allowance = Allowance(admission.memory_bytes_max())
        self._tally = _Tally()
        self._frozen: FrozenTree | None = None
        self._limits = BatchLimits(processes_max=1)
        self._unpacker = Unpacker(frozenset())  # until codecs are offered

    def run(self) -> None:
        self._channel.send(m.Welcome.ours("migrate"))
        greeting = self._channel.expect(m.Hello, m.Query)
        if isinstance(greeting, m.Query):
            self._answer(greeting.transaction)
            return
        offer, outline = self._negotiate()
        reach("destination.offered")
        undo = ExitStack()
        self._journal = self._begin(undo)
        reach("destination.none.journalled")
        # The journal is closed last: until then nobody else goes on with it.
        with closing(self._journal), undo:
            try:
                self._stand(offer, outline, undo)
                reach("destination.built")
            except _UNBUILDABLE as error:
                reasons = _reasons(error)
                # Ended first, told afterwards: what was refused never runs.
                self._journal.give_up(_said(reasons))
                raise _refused(reasons) from error
            # For good: a collection in the freeze would take milliseconds, and this
            # process ends with the arrival.
            gc.collect()
            gc.freeze()
            gc.disable()
            self._channel.send(m.OfferAccepted((self._skeleton.pid,)))
            reach("destination.offer.accepted")
            try:
                self._receive()
            except (*_UNBUILDABLE, PeerGaveUp) as error:
                raise self._give_up(error) from error
            except TransportError:
                self._journal.give_up(())
                raise
            self._hand_over(undo)

    def _answer(self, transaction: bytes) -> None:
        """Somebody has lost the link on which Go was said, and asks."""
        name = transaction.hex()
        verdict = recovery.verdict_on_arrival(self._state, name)
        if inquiry.answer(self._channel, transaction, verdict, self._state.epoch):
            recovery.forget_arrival(self._state, name)
            self._channel.send(m.FinAck())

    def _begin(self, undo: ExitStack) -> ArrivalJournal:
        self._leaf_name = arrival_leaf.transaction()
        self._home = cgroups.current(Pid(os.getpid()))
        leaf = cgroups.leaf_path(self._home, self._leaf_name)
        try:
            return ArrivalJournal(self._state, self._channel, leaf, undo)
        except CannotKeep as error:
            raise self._refuse((Reason("journal", str(error)),)) from error

    def _negotiate(self) -> tuple[m.Offer, Outline]:
        offer = self._channel.expect(m.Offer)
        try:
            outline = image.decode(offer.outline, Outline)
            image.judge(outline)
        except ImageError as error:
            raise self._refuse(_reasons(error)) from error
        if reasons := _differences(offer.options):
            raise self._refuse(reasons)
        self._admission.about(offer.options, self._channel.transaction or b"")
        try:
            denied = self._admission.judge(outline.processes)
        except OSError as error:
            raise self._refuse(_reasons(error)) from error
        if denied:
            raise self._refuse(denied)
        self._unpacker = Unpacker(frozenset(offer.options.codecs))
        return offer, outline

    def _refuse(self, reasons: tuple[Reason, ...]) -> RefusedByDestination:
        self._channel.send(m.Refused(_said(reasons)))
        self._channel.close(drain_s=1.0)
        return _refused(reasons)

    def _give_up(self, error: Exception) -> RolledBack:
        reasons = _reasons(error)
        # Ended first, told afterwards: what was declined never runs.
        self._journal.give_up(_said(reasons))
        return RolledBack("The arrival was given up: " + reasons[0].message)

    def _stand(self, offer: m.Offer, outline: Outline, undo: ExitStack) -> None:
        """Build the skeleton and all that the outline tells of it."""
        (process,) = outline.processes
        self._leaf = Leaf.create(self._home, self._leaf_name)
        undo.callback(_end_leaf, self._leaf)
        directory = os.open(
            cgroups.directory(self._leaf.path), os.O_RDONLY | os.O_DIRECTORY
        )
        try:
            self._skeleton = Skeleton.build(
                process, directory, offer.options.pid_policy
            )
        finally:
            os.close(directory)
        undo.callback(self._skeleton.destroy)
        memory = undo.enter_context(TaskMemory(self._skeleton.pid))
        pidfd = undo.enter_context(PidFd.open(self._skeleton.pid))
        self._target = Target(
            self._skeleton.pid,
            self._skeleton.tracee,
            self._skeleton.remote,
            memory,
            pidfd,
        )
        resume.prepare(self._skeleton, self._target, process)
        self._sink = undo.enter_context(PageSink(memory, self._skeleton.space))
        self._process = process

    def _receive(self) -> None:
        """Pages, changes of layout and the state, up to the end of them."""
        while True:
            message = self._channel.receive(timeout_s=ROUND_S)
            match message:
                case m.Pages(body):
                    raw = self._unpacker.unpack(body)
                    batch = PageBatch.decode(raw, self._limits)
                    self._sink.write(batch)
                    self._tally.count(batch)
                    self._allowance.spend(batch.data.bytes, (self._skeleton.pid,))
                case m.Layout(process=0, change=change):
                    self._relayout(change)
                case m.RoundEnd(number=number):
                    tally, self._tally = self._tally, _Tally()
                    self._channel.send(
                        m.RoundDone(number, tally.batches, tally.pages, tally.bytes)
                    )
                case m.State(payload):
                    self._thaw_plan(payload)
                case m.End():
                    self._complete()
                    return
                case m.Abort(reasons):
                    raise PeerGaveUp(m.Abort(reasons))
                case _:
                    raise ImageError(f"{type(message).__name__} has no place here.")

    def _relayout(self, change: bytes) -> None:
        layout = image.decode(change, image.Layout)
        new = image.apply_layout(self._skeleton.space, layout)
        self._skeleton.change(layout, new)
        self._target.remote = self._skeleton.remote
        self._sink.relayout(new)

    def _thaw_plan(self, payload: bytes) -> None:
        frozen = image.decode(payload, FrozenTree)
        if len(frozen.processes) != 1 or not frozen.processes[0].tasks:
            raise ImageError("The frozen tree is not the one that was offered.")
        self._frozen = frozen
        resume.follow_threads(self._skeleton, frozen.processes[0])
        reach("destination.state.heard")

    def _complete(self) -> None:
        """Everything that can fail; afterwards it is whole, frozen, and not ours."""
        began = time.monotonic_ns()
        if self._frozen is None:
            raise ImageError("The end came before the state.")
        resume.complete(
            self._skeleton, self._target, self._process, self._frozen.processes[0]
        )
        reach("destination.completed")
        self._leaf.freeze()
        self._skeleton.tracee.detach()
        reach("destination.detached")
        if not self._leaf.wait_frozen(READY_HOLD_S):
            raise CannotBuild("cgroup", "The new process does not freeze.")
        self._journal.stand(
            self._skeleton.pid,
            self._leaf,
            restore_ns=lambda: time.monotonic_ns() - began,
        )

    def _hand_over(self, undo: ExitStack) -> None:
        """Wait for Go, which is the last word; then it runs here."""
        if not self._journal.is_standing:
            raise RolledBack("The journal could not be written.")
        try:
            self._channel.expect(m.Go, timeout_s=READY_HOLD_S)
        except TransportError:
            self._journal.give_up(())
            raise
        self._journal.accept()
        if not self._journal.is_ours:
            # Frozen or gone, as the journal says; in neither case ours to undo.
            undo.pop_all()
            raise RolledBack("The hand-over could not be written down.")
        # It is nobody's to undo any more.
        undo.pop_all()
        try:
            self._journal.conclude()
        except TransportError:
            # It runs here, whether or not the source has heard of it.
            return
        finally:
            self._leaf.dissolve()


def _end_leaf(leaf: Leaf) -> None:
    leaf.kill()
    leaf.wait_empty(READY_HOLD_S)
    leaf.dissolve()


def _differences(options: m.Options) -> tuple[Reason, ...]:
    """What about this host makes it unfit."""
    reasons = []
    if options.machine != os.uname().machine:
        reasons.append(
            Reason("machine", f"It runs on {options.machine}; this host is another.")
        )
    if options.page_bytes != PAGE_BYTES:
        reasons.append(Reason("pages", f"Its pages have {options.page_bytes} bytes."))
    for name, theirs, clock in (
        ("monotonic", options.monotonic_minus_realtime_ns, time.CLOCK_MONOTONIC),
        ("boottime", options.boottime_minus_realtime_ns, time.CLOCK_BOOTTIME),
    ):
        ours = time.clock_gettime_ns(clock) - time.clock_gettime_ns(time.CLOCK_REALTIME)
        if abs(ours - theirs) > _CLOCKS_APART_NS:
            apart_s = (ours - theirs) / 1e9
            reasons.append(
                Reason(
                    "clock",
                    f"The {name} clock would jump by {apart_s:+.1f} s: the hosts were "
                    "booted at different times, and no time namespace is made yet.",
                )
            )
    return tuple(reasons)


def _reasons(error: Exception) -> tuple[Reason, ...]:
    match error:
        case CannotBuild():
            return (Reason(error.kind, error.message),)
        case CannotCarry():
            return (Reason(error.kind, error.message, error.pid, error.fd),)
        case ImageError():
            return (Reason("image", str(error)),)
        case TooMuch():
            return (Reason("limits", str(error)),)
        case PageStreamError():
            return (Reason("pages", str(error)),)
        case KernelError():
            return (
                Reason("kernel", f"The kernel of the destination refused: {error}"),
            )
        case PeerGaveUp():
            return (Reason("source", str(error)),)
        case _:
            return (Reason("destination", str(error)),)


def _said(reasons: tuple[Reason, ...]) -> tuple[m.Reason, ...]:
    return tuple(m.Reason(r.kind, r.pid, r.fd, m.text(r.message)) for r in reasons)


def _refused(reasons: tuple[Reason, ...]) -> RefusedByDestination:
    return RefusedByDestination(
        "Refused: " + " ".join(r.message for r in reasons), reasons=reasons
    )
