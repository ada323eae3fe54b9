"""The timers of timer_create(2) together with the signals they have queued.

Timers go on while their process is stopped, so what they are and what they have sent
has to be told of one moment: an expiry between two looks would be lost, or counted
twice. The moment is that of the first look at the queues. For a timer that repeats,
the next expiry is the first one after that moment, though it may have passed by the
time that anybody hears of it. What it sent since is left out (`TimersNow.settled`).

A queued signal does not tell how often its timer overran since: the kernel adds that
at delivery (posixtimer_deliver_signal(), kernel/time/posix-timers.c). So the task
takes such a signal from its queue, which counts, and queues to itself what it took.
The program gets the same number of expiries from it.
"""

import re
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from migrate.kernel import procfs
from migrate.kernel.procfs import PosixTimer
from migrate.kernel.remote import Remote
from migrate.kernel.tracee import Tracee
from precopy.ids import Pid, Tid

# On these a time of expiry means something elsewhere; on all others, processor time.
BOOT_CLOCKS: Final = frozenset({7, 9})  # CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM
DATED_CLOCKS: Final = frozenset({0, 8, 11})  # CLOCK_REALTIME, _REALTIME_ALARM, _TAI
WALL_CLOCKS: Final = BOOT_CLOCKS | DATED_CLOCKS | {1}  # CLOCK_MONOTONIC

SIGINFO_BYTES: Final = 128
_SI_TIMER: Final = -2
_CODE: Final = struct.Struct("<8xi")
_TIMER_ID: Final = struct.Struct("<16xi")
_TIMESPEC: Final = struct.Struct("<qq")
_ITIMERSPEC: Final = struct.Struct("<qqqq")
_NO_WAIT: Final = bytes(_TIMESPEC.size)
_MASK_BYTES: Final = 8
_NS: Final = 1_000_000_000
# A siginfo of a code that is none, which is not zero where it has to be, is not taken
# (E2BIG, post_copy_siginfo_from_user()): what was not dequeued is not queued either.
_NOTHING_TAKEN: Final = struct.pack("<iii", 0, 0, -100).ljust(SIGINFO_BYTES, b"\xff")
_QUEUED: Final = re.compile(rb"^SigQ:\t(\d+)/(\d+)$", re.MULTILINE)
_SIGNALS_MAX: Final = 256  # siginfos that fit into a workbench, with room to spare


@dataclass(frozen=True, slots=True)
class TimerNow:
    """One timer."""

    shown: PosixTimer
    interval_ns: int
    rest_ns: int  # until it expires; 0: it is not armed
    until_ns: int  # on reference_clock(): when it expires, which may have passed


@dataclass(frozen=True, slots=True)
class TimersNow:
    """All timers of a process, and which of their signals are not counted in them."""

    timers: tuple[TimerNow, ...]
    # By the thread whose queue it is, None for that of the process.
    queued: Mapping[Tid | None, Sequence[bytes]]

    def settled(self, infos: Iterable[bytes], queue: Tid | None) -> list[bytes]:
        """The queued signals without those that count as expiries still to come."""
        armed = {timer.shown.id for timer in self.timers if timer.rest_ns}
        counted = Counter(self.queued.get(queue, ()))
        found = []
        for info in infos:
            if is_timers(info) and _timer_id(info) in armed:
                if not counted[info]:
                    continue
                counted[info] -= 1
            found.append(info)
        return found


def reference_clock(clock: int) -> int:
    """The clock on which TimerNow.until_ns is told: one that nobody sets."""
    return time.CLOCK_BOOTTIME if clock in BOOT_CLOCKS else time.CLOCK_MONOTONIC


def look(pid: Pid, tracee: Tracee, remote: Remote) -> TimersNow:
    """The timers of a process, all of whose threads are stopped.

    Signals that repeating timers have queued are queued anew, with their overruns.
    """
    shown = sorted(procfs.timers(pid), key=lambda timer: timer.id)
    if not shown:
        return TimersNow((), {})
    leader = tracee.tids[0]
    threads = {t.target for t in shown if t.thread}
    queues = [None, *(tid for tid in tracee.tids if tid in threads)]
    since_ns = time.monotonic_ns()
    queued = {queue: _sent_by_timers(tracee, queue) for queue in queues}
    # From when on each timer counts; one with a queued signal, from when that is taken.
    counts_from = {_timer_id(i): 0 for infos in queued.values() for i in infos}
    if counts_from and _has_room(pid):
        for tid in dict.fromkeys([leader, *(q for q in queues if q is not None)]):
            taken = _requeue(remote.on(tid), tracee, queued, of_process=tid == leader)
            counts_from |= taken
    rows = _ask(remote, shown)
    fired = {
        _timer_id(info)
        for queue in queues
        for info in Counter(_sent_by_timers(tracee, queue)) - Counter(queued[queue])
    }
    return TimersNow(
        tuple(
            _since(row, counts_from.get(row.shown.id, since_ns))
            if row.shown.id in fired
            else row
            for row in rows
        ),
        queued,
    )


def _since(timer: TimerNow, moment_ns: int) -> TimerNow:
    """A timer that fired after ``moment_ns`` of CLOCK_MONOTONIC, before it did."""
    if not moment_ns or not timer.interval_ns:
        return timer
    if timer.shown.clock in BOOT_CLOCKS:
        moment_ns += time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    passed = (timer.until_ns - moment_ns - 1) // timer.interval_ns
    return replace(timer, until_ns=timer.until_ns - max(passed, 0) * timer.interval_ns)


def _ask(remote: Remote, shown: Sequence[PosixTimer]) -> list[TimerNow]:
    remote.reset()
    row_bytes = _ITIMERSPEC.size + _TIMESPEC.size
    table = remote.space(row_bytes * len(shown))
    batch = remote.batch()
    for at, timer in enumerate(shown):
        row = table + at * row_bytes
        batch.add("timer_gettime", timer.id, row)
        clock = reference_clock(timer.clock)
        batch.add("clock_gettime", clock, row + _ITIMERSPEC.size)
    batch.run()
    data = remote.read(table, row_bytes * len(shown))
    found = []
    for at, timer in enumerate(shown):
        rest = _ITIMERSPEC.unpack_from(data, at * row_bytes)
        now = _TIMESPEC.unpack_from(data, at * row_bytes + _ITIMERSPEC.size)
        rest_ns = rest[2] * _NS + rest[3]
        # An armed timer shows no less than 1 ns.
        until_ns = now[0] * _NS + now[1] + rest_ns if rest_ns else 0
        found.append(TimerNow(timer, rest[0] * _NS + rest[1], rest_ns, until_ns))
    return found


def _requeue(
    remote: Remote,
    tracee: Tracee,
    queued: dict[Tid | None, list[bytes]],
    *,
    of_process: bool,
) -> dict[int, int]:
    """Have a thread take its timers' signals and queue them again, overruns counted.

    It takes those of the process as well with ``of_process``. ``queued`` becomes what
    is queued now. Gives when each timer's last signal was taken.
    """
    own = queued.get(remote.tid, [])
    shared = queued[None] if of_process else []
    numbers = {_number(info) for info in (*own, *shared)}
    rows: list[tuple[int, Tid | None]] = []
    for number in sorted(numbers):
        # A thread takes what is its own before what is the process's.
        mine = _queue(tracee, remote.tid, number)
        rows += [(number, remote.tid)] * len(mine)
        if any(_number(info) == number for info in shared):
            rows += [(number, None)] * len(_queue(tracee, None, number))
    if not rows or len(rows) > _SIGNALS_MAX:
        return {}
    found: dict[int, int] = {}
    now: dict[Tid | None, list[bytes]] = {}
    for (_, queue), info, at_ns in zip(
        rows, *_take_and_queue(remote, rows), strict=True
    ):
        if is_timers(info):
            now.setdefault(queue, []).append(info)
            found[_timer_id(info)] = at_ns
    queued |= {queue: now.get(queue, []) for _, queue in rows}
    return found


def _take_and_queue(
    remote: Remote, rows: Sequence[tuple[int, Tid | None]]
) -> tuple[list[bytes], list[int]]:
    """What was taken, and when. In one batch: nothing is lost should we die."""
    own_pid, own_tid = remote.own_ids()
    remote.reset()
    infos = remote.space(SIGINFO_BYTES * len(rows))
    times = remote.space(_TIMESPEC.size * len(rows))
    remote.write(infos, _NOTHING_TAKEN * len(rows))
    batch = remote.batch()
    for at, (number, _) in enumerate(rows):
        mask = (1 << (number - 1)).to_bytes(_MASK_BYTES, "little")
        info = infos + at * SIGINFO_BYTES
        batch.add("rt_sigtimedwait", mask, info, _NO_WAIT, _MASK_BYTES)
        batch.add("clock_gettime", time.CLOCK_MONOTONIC, times + at * _TIMESPEC.size)
    for at, (number, queue) in enumerate(rows):
        info = infos + at * SIGINFO_BYTES
        if queue is None:
            batch.add("rt_sigqueueinfo", own_pid, number, info)
        else:
            batch.add("rt_tgsigqueueinfo", own_pid, own_tid, number, info)
    batch.run(check=False)
    data = remote.read(infos, SIGINFO_BYTES * len(rows))
    clocks = _TIMESPEC.iter_unpack(remote.read(times, _TIMESPEC.size * len(rows)))
    return (
        [data[at : at + SIGINFO_BYTES] for at in range(0, len(data), SIGINFO_BYTES)],
        [seconds * _NS + ns for seconds, ns in clocks],
    )


def _has_room(pid: Pid) -> bool:
    """Whether as many signals may be queued again (RLIMIT_SIGPENDING)."""
    found = _QUEUED.search(procfs.read(pid, "status"))
    return found is not None and int(found[1]) + _SIGNALS_MAX < int(found[2])


def _queue(tracee: Tracee, queue: Tid | None, number: int) -> list[bytes]:
    infos = tracee.peek_signals(queue or tracee.tids[0], shared=queue is None)
    return [info for info in infos if _number(info) == number]


def _sent_by_timers(tracee: Tracee, queue: Tid | None) -> list[bytes]:
    infos = tracee.peek_signals(queue or tracee.tids[0], shared=queue is None)
    return [info for info in infos if is_timers(info)]


def _number(info: bytes) -> int:
    return int.from_bytes(info[:4], "little")


def is_timers(info: bytes) -> bool:
    """Whether a siginfo_t says that a timer of timer_create(2) sent it."""
    return bool(_CODE.unpack_from(info)[0] == _SI_TIMER)


def _timer_id(info: bytes) -> int:
    return int(_TIMER_ID.unpack_from(info)[0])
