"""What one process and its threads are, another becomes, kind by kind.

Goal: dump() and restore() of each process and task kind, without the rest of a move.
Method: a scenario arranges; another process, which has arranged nothing, is given what
dump() says of the first; then dump() must say the same of it.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from migrate.kernel import procfs, resource_limits
from migrate.kernel.pidfds import PidFd
from migrate.kernel.tasks import Limit
from migrate.kernel.tracee import Tracee
from migrate.kinds import (
    affinity,
    credentials,
    filesystem,
    interval_timers,
    limits,
    parent_death_signal,
    pending_signals,
    personality,
    posix_timer,
    rseq,
    scheduling,
    table,
)
from migrate.kinds.kind import (
    CannotCarry,
    ProcessKind,
    Record,
    Source,
    Target,
    TaskKind,
)
from precopy.ids import Pid
from tests.live.scenarios.harness import Scenario, tell_moved

BARE: Final = "tid_address"  # two threads, and nothing else that is arranged

# These say one thing of the destination and another of the source, on purpose; or,
# like an rseq area, cannot be shared by two programs.
APART: Final = frozenset({"parent_death_signal", "rseq", "unusual_modes"})

# file_lock belongs to a process, but is tested with the descriptors it locks through.
OF_PROCESS: Final = [m for m in table.process_kinds() if m.KIND.name != "file_lock"]
OF_TASK: Final = table.task_kinds()
ALL: Final[tuple[ProcessKind | TaskKind, ...]] = (*OF_PROCESS, *OF_TASK)
NAMES: Final = sorted(module.KIND.name for module in ALL)


def named(module: ProcessKind | TaskKind) -> str:
    """What a test of this kind is called."""
    return module.KIND.name


@contextmanager
def looked_at(pid: int) -> Iterator[Source]:
    """The process, stopped, for as long as the block lasts."""
    with ExitStack() as stack:
        tracee = stack.enter_context(Tracee.seize(Pid(pid)))
        remote = stack.enter_context(tracee.remote())
        pidfd = stack.enter_context(PidFd.open(Pid(pid)))
        yield Source(Pid(pid), tracee, remote, pidfd)


@contextmanager
def pair(name: str, folder: Path) -> Iterator[tuple[Source, Source]]:
    """A process in which scenario ``name`` is arranged, and a bare one; stopped."""
    with ExitStack() as stack:
        (folder / "full").mkdir()
        (folder / "bare").mkdir()
        # A second argument has a scenario arrange what a whole move would refuse.
        full = stack.enter_context(Scenario(name, folder / "full", "all"))
        bare = stack.enter_context(Scenario(BARE, folder / "bare"))
        full.ready()
        bare.ready()
        yield (
            stack.enter_context(looked_at(full.process.pid)),
            stack.enter_context(looked_at(bare.process.pid)),
        )


def as_target(source: Source) -> Target:
    """The same process, to be given something."""
    s = source
    return Target(s.pid, s.tracee, s.remote, s.tracee.memory, s.pidfd)


def settled(record: Record) -> object:
    """The record without what goes on by itself: the time left of a timer."""
    if isinstance(record, interval_timers.IntervalTimers):
        timers = (record.real, record.virtual, record.profiling)
        return [(t.interval_us, t.expiry_us > 0) for t in timers]
    if isinstance(record, posix_timer.PosixTimers):
        return [replace(t, expiry_ns=int(t.expiry_ns > 0)) for t in record.timers]
    return record


def without_threads(record: Record, own: Source) -> Record:
    """The record with a timer's thread left out: each process has its own."""
    if isinstance(record, posix_timer.PosixTimers):
        return replace(
            record,
            timers=tuple(
                replace(t, tid=own.pid if t.tid else 0) for t in record.timers
            ),
        )
    return record


@pytest.mark.parametrize("module", OF_PROCESS, ids=named)
def test_a_process_becomes_the_other(module: ProcessKind, tmp_path: Path) -> None:
    """What dump() says of the one it says of the other after restore()."""
    with pair(module.KIND.name, tmp_path) as (full, bare):
        record = without_threads(module.dump(full), bare)
        # Our own limits, which both began with, may be as high as they can be.
        lower_descriptor_limit(bare)
        assert settled(record) != settled(module.dump(replace(bare))), (
            "nothing arranged"
        )
        for _ in "once", "again":
            module.restore(record, as_target(bare))
            assert settled(module.dump(replace(bare))) == settled(record)


@pytest.mark.parametrize(
    "module", [m for m in OF_TASK if m.KIND.name not in APART], ids=named
)
def test_a_thread_becomes_the_other(module: TaskKind, tmp_path: Path) -> None:
    """What dump() says of each thread it says of the other after restore()."""
    with pair(module.KIND.name, tmp_path) as (full, bare):
        pairs = list(zip(full.tracee.tids, bare.tracee.tids, strict=False))
        records = [module.dump(full, tid) for tid, _ in pairs]
        before = [module.dump(bare, tid) for _, tid in pairs]
        assert records != before, "nothing arranged"
        for _ in "once", "again":
            for record, (_, tid) in zip(records, pairs, strict=True):
                module.restore(record, as_target(bare), tid)
            assert [module.dump(bare, tid) for _, tid in pairs] == records


@pytest.mark.parametrize("name", NAMES)
def test_dumping_leaves_no_trace(name: str, tmp_path: Path) -> None:
    """A process that every kind has dumped, twice, finds everything as it was."""
    with Scenario(name, tmp_path) as scenario:
        ready = scenario.ready()
        for _ in "before the freeze", "in it":
            with looked_at(scenario.process.pid) as source:
                for module in OF_PROCESS:
                    module.dump(source)
                for module_of_task in OF_TASK:
                    for tid in source.tracee.tids:
                        module_of_task.dump(source, tid)
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_process_survives_being_given_its_own(name: str, tmp_path: Path) -> None:
    """Restored into the process that it was dumped from, each record changes nothing.

    This runs the restored state, not only reads it back: handlers are called, timers
    fire, locks of ended threads are freed.
    """
    with Scenario(name, tmp_path) as scenario:
        ready = scenario.ready()
        with looked_at(scenario.process.pid) as source:
            dump_and_restore_all(source)
        tell_moved(scenario.process.pid, ready)
        assert scenario.verdict() == []


def dump_and_restore_all(source: Source) -> None:
    """Every kind's record, over the wire and back, into where it came from."""
    target = as_target(source)
    of_process = [
        table.pack(m.KIND, record)
        for m in OF_PROCESS
        if (record := m.dump(source)) is not None
    ]
    of_tasks = [
        (tid, table.pack(m.KIND, record))
        for tid in source.tracee.tids
        for m in OF_TASK
        if (record := m.dump(source, tid)) is not None
    ]
    modules: dict[str, Any] = {m.KIND.name: m for m in ALL}
    for dumped in of_process:
        modules[dumped.kind].restore(table.unpack(dumped), target)
    for tid, dumped in of_tasks:
        modules[dumped.kind].restore(table.unpack(dumped), target, tid)


def test_a_timer_id_is_reached_by_counting(tmp_path: Path) -> None:
    """Where the kernel gives no ids on demand, they are counted up to."""
    with pair("posix_timer", tmp_path) as (full, bare):
        record = without_threads(posix_timer.dump(full), bare)
        posix_timer._create_by_counting(bare.remote, record.timers)
        there = posix_timer.dump(bare).timers
        assert [t.id for t in there] == [t.id for t in record.timers]
        far = replace(record.timers[0], id=1234)
        posix_timer._create_by_counting(bare.remote, [far])
        assert [t.id for t in posix_timer.dump(replace(bare)).timers][-1] == 1234
        with pytest.raises(CannotCarry, match="1233"):
            posix_timer._create_by_counting(bare.remote, [replace(far, id=1233)])


def test_a_siginfo_that_the_kernel_had_no_room_for_is_carried(tmp_path: Path) -> None:
    """A pending signal that is only a bit in the mask arrives as the kernel has it."""
    with pair("pending_signals", tmp_path) as (_, bare):
        record = pending_signals.PendingSignals(
            (int(signal.SIGUSR2).to_bytes(128, "little"),)
        )
        pending_signals.restore(record, as_target(bare))
        assert pending_signals.dump(bare) == record
        with pytest.raises(CannotCarry):
            pending_signals.restore(
                pending_signals.PendingSignals((bytes(128),)), as_target(bare)
            )


def test_a_parent_that_stays_behind_sends_no_signal(tmp_path: Path) -> None:
    """Where the parent is not an init of its own, the signal is left out."""
    with pair("parent_death_signal", tmp_path) as (full, bare):
        tid = bare.tracee.tids[0]
        record = parent_death_signal.dump(full, full.tracee.tids[0])
        assert record.signal == signal.SIGUSR1
        parent_death_signal.restore(record, as_target(bare), tid)
        assert parent_death_signal.dump(bare, tid).signal == 0


def test_rseq_is_registered_where_it_was(tmp_path: Path) -> None:
    """The area is given up and registered again, with its sequence pointer."""
    with pair("rseq", tmp_path) as (full, _):
        tid = full.tracee.tids[1]
        record = rseq.dump(full, tid)
        assert record.pointer
        assert record.size >= 32
        gone = rseq.Rseq(0, 0, 0, 0, bytes(8))
        rseq.restore(gone, as_target(full), tid)
        assert full.tracee.rseq(tid) is None
        marked = replace(record, sequence=(0x1000).to_bytes(8, "little"))
        rseq.restore(marked, as_target(full), tid)
        assert rseq.dump(full, tid) == marked
        # No sequence lies there: the thread must not get to see this.
        full.tracee.memory.write(record.pointer + 8, bytes(8))
        rseq.restore(record, as_target(full), tid)


def test_a_process_with_other_ids_is_not_given_these(tmp_path: Path) -> None:
    """Ids are checked, not set: a record of somebody else is refused."""
    with pair("tid_address", tmp_path) as (full, bare):
        tid = full.tracee.tids[0]
        record = credentials.dump(full, tid)
        stranger = replace(record, groups=(*record.groups, 4711))
        with pytest.raises(CannotCarry, match="4711"):
            credentials.restore(stranger, as_target(bare), bare.tracee.tids[0])


def test_a_capability_is_given_up_but_never_gained(tmp_path: Path) -> None:
    """A record with a capability that the target has not is refused."""
    with pair("credentials", tmp_path) as (full, bare):
        tid = bare.tracee.tids[0]
        rich = credentials.dump(bare, tid)
        credentials.restore(
            credentials.dump(full, full.tracee.tids[0]), as_target(bare), tid
        )
        with pytest.raises(CannotCarry, match="capabilities"):
            credentials.restore(rich, as_target(bare), tid)


def test_processors_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    """A thread bound to a processor of the source only may run where it is allowed."""
    with pair("affinity", tmp_path) as (_, bare):
        tid = bare.tracee.tids[0]
        allowed = os.sched_getaffinity(tid)
        elsewhere = affinity.Affinity((8000, 8001))
        affinity.restore(elsewhere, as_target(bare), tid)
        assert os.sched_getaffinity(tid) == allowed
        affinity.restore(affinity.Affinity((0, 8000)), as_target(bare), tid)
        assert os.sched_getaffinity(tid) == {0}
        with pytest.raises(CannotCarry):
            affinity.restore(affinity.Affinity((1 << 20,)), as_target(bare), tid)


def test_a_limit_above_what_is_allowed_here_is_refused(tmp_path: Path) -> None:
    """A soft limit that applied at the source is not lowered in silence."""
    with pair("limits", tmp_path) as (full, bare):
        record = limits.dump(full)
        hard = limits.dump(bare).limits
        at = next(
            (n for n, limit in enumerate(hard) if limit.hard < 1 << 62),
            None,
        )
        if at is None or "CAP_SYS_RESOURCE" in capabilities():
            pytest.skip("every hard limit can be raised here")
        lofty = Limit(hard[at].hard + 1, hard[at].hard + 1)
        higher = limits.Limits((*record.limits[:at], lofty, *record.limits[at + 1 :]))
        with pytest.raises(CannotCarry, match=str(lofty.soft)):
            limits.restore(higher, as_target(bare))
        roomy = Limit(hard[at].hard, hard[at].hard + 1)
        fitting = limits.Limits((*record.limits[:at], roomy, *record.limits[at + 1 :]))
        limits.restore(fitting, as_target(bare))
        assert limits.dump(bare).limits[at] == Limit(hard[at].hard, hard[at].hard)


def capabilities() -> set[str]:
    """Of the capabilities that matter here, those that we have."""
    effective = procfs.status(Pid(os.getpid())).capabilities.effective
    return {"CAP_SYS_RESOURCE"} if effective >> 24 & 1 else set()


def test_a_directory_that_is_not_here_is_named(tmp_path: Path) -> None:
    """The operator is told which directory to make."""
    with pair("tid_address", tmp_path) as (_, bare):
        record = filesystem.FileSystem(b"/nonexistent/of course", 0o22)
        with pytest.raises(CannotCarry, match="/nonexistent/of course"):
            filesystem.restore(record, as_target(bare))


def test_a_removed_directory_is_refused(tmp_path: Path) -> None:
    """Who works in a directory without a name cannot come; one so called can."""
    with Scenario(BARE, tmp_path) as scenario:
        scenario.ready()
        pid = Pid(scenario.process.pid)
        assert filesystem.refuse(pid) == []
        really_so = tmp_path / "so called (deleted)"
        really_so.mkdir()
        with looked_at(pid) as source:
            filesystem.restore(
                filesystem.FileSystem(os.fsencode(really_so), 0o22), as_target(source)
            )
            assert filesystem.refuse(pid) == []
            really_so.rmdir()
            assert "removed" in filesystem.refuse(pid)[0]


def test_nothing_is_refused_of_an_ordinary_process(tmp_path: Path) -> None:
    """Preflight finds no fault with a process that has none."""
    with Scenario(BARE, tmp_path) as scenario:
        scenario.ready()
        pid = Pid(scenario.process.pid)
        for module in ALL:
            assert module.refuse(pid) == [], module.KIND.name


def test_every_task_kind_is_restored_before_the_rights_go() -> None:
    """Credentials come last, but for the signal that a change of them clears."""
    names = [m.KIND.name for m in OF_TASK]
    assert names[-2:] == ["credentials", "parent_death_signal"]


def test_another_systems_personality_is_refused(tmp_path: Path) -> None:
    """What makes the kernel treat signals and paths otherwise is named."""
    with Scenario("personality", tmp_path) as scenario:
        scenario.ready()
        pid = Pid(scenario.process.pid)
        assert personality.refuse(pid) == []
        with looked_at(pid) as source:
            source.remote.syscall("personality", 0x4000001)  # PER_SVR4
            assert "0x4000001" in personality.refuse(pid)[0]


def test_a_nice_value_needs_no_right_to_be_raised(tmp_path: Path) -> None:
    """Without CAP_SYS_NICE a lower nice value stays away, a policy is refused."""
    with pair("scheduling", tmp_path) as (full, bare):
        tid = bare.tracee.tids[1]
        in_real_time = scheduling.dump(full, full.tracee.tids[1])
        nicer = replace(scheduling.dump(bare, tid), nice=-5)
        without_right(bare, tid)
        scheduling.restore(nicer, as_target(bare), tid)
        assert scheduling.dump(bare, tid).nice == 0
        with pytest.raises(CannotCarry, match="EPERM"):
            scheduling.restore(in_real_time, as_target(bare), tid)


def without_right(source: Source, tid: int) -> None:
    """Take all capabilities from a thread."""
    restore: Callable[..., None] = credentials.restore
    record = credentials.dump(source, source.tracee.tids[0])
    none = replace(
        record,
        capabilities=replace(
            record.capabilities, permitted=0, effective=0, inheritable=0, ambient=0
        ),
    )
    restore(none, as_target(source), tid)


def lower_descriptor_limit(source: Source) -> None:
    """Leave the process fewer descriptors than it may have."""
    number = resource.RLIMIT_NOFILE
    hard = resource_limits.read(source.remote)[number].hard
    resource_limits.write(source.remote, {number: Limit(64, hard)})
