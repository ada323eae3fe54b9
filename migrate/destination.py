"""The arrival, told from top to bottom.

Runs in a process of its own (see agent.py), on one thread: it traces the skeleton,
and ptrace obeys only the thread that seized. Until the source says Go, the process has
never run here, and whatever goes wrong ends the skeleton; the source runs on. At Go
nothing is left to do that could fail but to thaw.
"""

import gc
import os
import struct
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Final

from migrate import arrival_leaf, image, inquiry, limits, processor, recovery, resume
from migrate.admission import Admission, Allowance, TooMuch
from migrate.arrival_journal import ArrivalJournal
from migrate.audit import Audit
from migrate.errors import Reason, RefusedByDestination, RolledBack
from migrate.failpoints import reach
from migrate.image import FrozenTree, ImageError, Joined, Outline, Shared
from migrate.kernel import cgroups
from migrate.kernel.cgroups import Leaf
from migrate.kernel.pidfds import PidFd
from migrate.kinds.kind import CannotCarry, Joint, Target, settle
from migrate.mapping import CannotBuild
from migrate.patience import patient
from migrate.peers import Known
from migrate.skeleton import Skeleton
from migrate.skeleton_tree import SkeletonTree
from migrate.state_directory import CannotKeep, StateDirectory
from precopy.errors import KernelError, PageStreamError, PrecopyError
from precopy.ids import PAGE_BYTES, Pid
from precopy.page_sink import PageSink
from precopy.page_stream import OBJECTS_FROM, BatchLimits, PageBatch
from precopy.task_memory import TaskMemory
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.compression import Unpacker
from transport.errors import Interrupted, TransportError

ROUND_S: Final = 600.0  # a round may throttle itself; the peer's silence may not last
READY_HOLD_S: Final = patient(120.0)  # so long a finished copy waits for its Go
_CLOCKS_APART_NS: Final = 1_000_000_000

_UNBUILDABLE: Final = (
    *(CannotBuild, CannotCarry, ImageError, PrecopyError, OSError, TooMuch),
    # A number of the peer's that no field of the kernel's can hold, a run of pages that
    # is none.
    *(struct.error, OverflowError, ValueError),
)


def arrive(channel: Channel, visitor: Known) -> int:
    """Receive one process tree, or say what became of one; 0 when that was done.

    Raises:
        RefusedByDestination: it was not let in.
        RolledBack: it was given up on the way; nothing of it is left here.
    """
    try:
        state = StateDirectory()
        audit = Audit(state.path)
        ours = Admission(visitor, channel.peer_host, limits.load(), audit)
        _Arrival(channel, state, ours).run()
    except Interrupted as error:
        raise RolledBack("The agent was told to stop.") from error
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
        self._tally = _Tally()
        self._frozen: FrozenTree | None = None
        self._tree = SkeletonTree()
        self._places: list[_Place | None] = []
        self._joints: dict[tuple[str | int, ...], Joint] = {}
        self._has_joined = False  # some process, since the outline
        self._limits = BatchLimits(processes_max=1)
        self._unpacker = Unpacker(frozenset())  # until codecs are offered

    def run(self) -> None:
        self._channel.send(m.Welcome.ours("migrate"))
        greeting_s = self._admission.greeting_s
        greeting = self._channel.expect(m.Hello, m.Query, timeout_s=greeting_s)
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
            pids = tuple(skeleton.pid for skeleton in self._tree.living)
            self._channel.send(m.OfferAccepted(pids))
            reach("destination.offer.accepted")
            try:
                self._receive()
            except (*_UNBUILDABLE, PeerGaveUp) as error:
                raise self._give_up(error) from error
            except TransportError as error:
                self._journal.give_up(_parting(error))
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
        leaf = cgroups.leaf_path(self._home, self._leaf_name)
        try:
            return ArrivalJournal(self._state, self._channel, leaf, undo)
        except CannotKeep as error:
            raise self._refuse((Reason("journal", str(error)),)) from error

    def _negotiate(self) -> tuple[m.Offer, Outline]:
        offer = self._channel.expect(m.Offer, timeout_s=self._admission.greeting_s)
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
            why = f"The decision cannot be written down there: {error.strerror}."
            raise self._refuse((Reason("audit", why),)) from error
        if denied:
            raise self._refuse(denied)
        self._allowance = Allowance(self._admission.memory_bytes_max())
        try:
            self._home = self._admission.home()
        except OSError as error:
            why = error.strerror or str(error)
            raise self._refuse((Reason("cgroup", why),)) from error
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
        """Build the skeletons and all that the outline tells of them."""
        self._undo = undo
        self._leaf = Leaf.create(self._home, self._leaf_name)
        undo.callback(_end_leaf, self._leaf)
        directory = os.open(
            cgroups.directory(self._leaf.path), os.O_RDONLY | os.O_DIRECTORY
        )
        undo.callback(self._tree.objects.close)
        undo.callback(self._tree.destroy)
        try:
            self._tree.objects.hear(outline.objects)
            policy = offer.options.pid_policy
            self._tree.build(outline.processes, directory, policy)
        finally:
            os.close(directory)
        for skeleton in self._tree.living:
            self._places.append(self._furnish(skeleton))
        self._count()

    def _count(self) -> None:
        self._limits = BatchLimits(
            processes_max=len(self._places), objects_max=len(self._tree.objects)
        )

    def _furnish(self, skeleton: Skeleton) -> "_Place":
        """Give it all that its outline tells of."""
        closing_it = self._undo.enter_context(ExitStack())
        memory = closing_it.enter_context(TaskMemory(skeleton.pid))
        pidfd = closing_it.enter_context(PidFd.open(skeleton.pid))
        target = Target(skeleton.pid, skeleton.tracee, skeleton.remote, memory, pidfd)
        target.elders = [place.target if place else None for place in self._places]
        target.objects = self._tree.objects
        target.joints = self._joints
        resume.prepare(skeleton, target, skeleton.process)
        sink = closing_it.enter_context(PageSink(memory, skeleton.space))
        return _Place(skeleton, target, sink, closing_it)

    def _receive(self) -> None:
        """Pages, changes of layout and the state, up to the end of them."""
        while True:
            message = self._channel.receive(timeout_s=ROUND_S)
            match message:
                case m.Pages(body):
                    raw = self._unpacker.unpack(body)
                    batch = PageBatch.decode(raw, self._limits)
                    if batch.process >= OBJECTS_FROM:
                        self._tree.objects.write(batch)
                    else:
                        self._place(batch.process).sink.write(batch)
                    self._tally.count(batch)
                    self._allowance.spend(
                        batch.data.bytes,
                        self._pids(),
                        self._tree.objects.resident_bytes,
                    )
                case m.Layout(process=index, change=change):
                    self._change(index, change)
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

    def _place(self, index: int) -> "_Place":
        place = self._places[index] if index < len(self._places) else None
        if place is None:
            raise ImageError(f"There is no process {index} any more.")
        return place

    def _pids(self) -> tuple[Pid, ...]:
        return tuple(place.skeleton.pid for place in self._places if place)

    def _change(self, index: int, change: bytes) -> None:
        """A change of mappings, one that has joined the tree, or what they share."""
        if index == image.JOINS:
            self._join(change)
            return
        if index == image.OBJECTS:
            self._hear_objects(change)
            return
        place = self._place(index)
        layout = image.decode(change, image.Layout)
        new = image.apply_layout(place.skeleton.space, layout)
        place.skeleton.change(layout, new)
        place.target.remote = place.skeleton.remote
        place.sink.relayout(new)

    def _join(self, change: bytes) -> None:
        joined = image.decode(change, Joined)
        if not 0 < joined.index <= len(self._places) < image.PROCESSES_MAX:
            raise ImageError("There is no place in the tree for that process.")
        image.judge_process(joined.process, joined.index)
        self._admission.require(joined.process)
        for index, place in enumerate(self._places):
            same = place and place.skeleton.process.pid == joined.process.pid
            if place and same:
                # Its number has passed on, or it is another program from now on.
                place.closing.close()
                self._places[index] = None
        skeleton = self._tree.join(joined)
        self._has_joined = True
        if joined.index == len(self._places):
            self._places.append(None)
        self._places[joined.index] = self._furnish(skeleton)
        self._count()

    def _hear_objects(self, change: bytes) -> None:
        objects = self._tree.objects
        objects.hear(image.decode(change, Shared).objects)
        objects.make(self._tree.root.remote)
        self._count()

    def _thaw_plan(self, payload: bytes) -> None:
        frozen = image.decode(payload, FrozenTree)
        image.judge_frozen(frozen, len(self._places))
        self._frozen = frozen
        for index, process in enumerate(frozen.processes):
            place = self._places[index]
            if process is None:
                if place is not None:
                    place.closing.close()
                self._places[index] = None
                self._tree.bury(index)
            elif place is None:
                raise ImageError(f"Process {index} was never heard of.")
            else:
                resume.follow_threads(place.skeleton, process)
        for ended in frozen.ended:
            self._tree.leave_ended(ended)
        reach("destination.state.heard")

    def _complete(self) -> None:
        """Everything that can fail; afterwards it is whole, frozen, and not ours."""
        began = time.monotonic_ns()
        if self._frozen is None:
            raise ImageError("The end came before the state.")
        changes = self._has_joined or any(
            process and process.descriptors for process in self._frozen.processes
        )
        for place, frozen in zip(self._places, self._frozen.processes, strict=True):
            if place is None or frozen is None:
                continue
            before = place.skeleton.process
            if changes and frozen.descriptors is None and before.descriptors.leans():
                # What it leans on may be another by now.
                frozen = replace(frozen, descriptors=before.descriptors)
            resume.complete(place.skeleton, place.target, before, frozen)
        settle(self._joints)
        self._tree.objects.seal()
        reach("destination.completed")
        self._leaf.freeze()
        for skeleton in self._tree.living:
            skeleton.tracee.detach()
        reach("destination.detached")
        if not self._leaf.wait_frozen(READY_HOLD_S):
            raise CannotBuild("cgroup", "The new process does not freeze.")
        self._journal.stand(
            self._tree.root.pid,
            self._leaf,
            restore_ns=lambda: time.monotonic_ns() - began,
        )

    def _hand_over(self, undo: ExitStack) -> None:
        """Wait for Go, which is the last word; then it runs here."""
        if not self._journal.is_standing:
            raise RolledBack("The journal could not be written.")
        try:
            self._channel.expect(m.Go, timeout_s=READY_HOLD_S)
        except TransportError as error:
            self._journal.give_up(_parting(error))
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


@dataclass(frozen=True, slots=True)
class _Place:
    """What belongs to one skeleton of the tree."""

    skeleton: Skeleton
    target: Target
    sink: PageSink
    closing: ExitStack  # gives back what we hold of it; not the skeleton


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
    if lacking := processor.missing(options.features, processor.instructions()):
        reasons.append(
            Reason(
                "processor",
                f"The processor here lacks {', '.join(lacking)}, which the program may "
                "have found and use. Move it to one that has them.",
            )
        )
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


def _parting(error: TransportError) -> tuple[m.Reason, ...]:
    """What is said to a source that can still be told."""
    if isinstance(error, Interrupted):
        return (m.Reason("agent", None, None, "The agent there was told to stop."),)
    return ()


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
        case struct.error() | ValueError() | OverflowError():
            why = f"A number of the peer's is none that there is: {error}."
            return (Reason("image", why),)
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


def _refused(reasons: tuple[Reason, ...]) -> RefusedByDestination:
    return RefusedByDestination(
        "Refused: " + " ".join(r.message for r in reasons), reasons=reasons
    )


def _said(reasons: tuple[Reason, ...]) -> tuple[m.Reason, ...]:
    return tuple(m.Reason(r.kind, r.pid, r.fd, m.text(r.message)) for r in reasons)
