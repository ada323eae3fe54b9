"""/proc/timer_list: when each sleeping thread will be woken, without names.

read from   kernel/time/timer_list.c; root only
example      #1: <0000000040a0a9a8>, hrtimer_wakeup, S:01
             # expires at 1180434894005-1180435048004 nsecs [in … to … nsecs]

A sleep that ends at a time is an hrtimer whose function is hrtimer_wakeup. The list
does not say whose it is, but stopping a thread takes its timer out of the list. So
two readings, one before the stop and one after, leave few candidates for each
sleeper; how long it asked for and how much slack it allows tell most of these apart.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Final

from precopy.ids import Tid

TEXT_BYTES_MAX: Final = 16 << 20
SHARED_SLACK_NS_MAX: Final = 100_000_000  # MAX_SLACK, fs/select.c
# Who has more timers to choose from is given the latest: it is one of a crowd.
_CHOICES_MAX: Final = 16
_SECOND_NS: Final = 1_000_000_000
_PATH: Final = "/proc/timer_list"
_CHUNK_BYTES: Final = 1 << 18
_NOW: Final = re.compile(rb"now at (\d{1,19}) nsecs")
_CLOCK: Final = re.compile(rb" clock (\d{1,3}):")
_OFFSET: Final = re.compile(rb"  \.offset: +(\d{1,20}) nsecs")
_TIMER: Final = re.compile(rb" #\d+: <([0-9a-f]{1,16})>, hrtimer_wakeup, S:")
_WAKEUP: Final = re.compile(
    _TIMER.pattern + rb"\d+\n # expires at (\d{1,19})-(\d{1,19}) nsecs "
)
_EXPIRES: Final = re.compile(rb" # expires at (\d{1,19})-(\d{1,19}) nsecs ")


_SOFT_NS: Final = attrgetter("soft_ns")


class TimerBase(IntEnum):
    """enum hrtimer_base_type; the soft-interrupt bases follow at + 4."""

    MONOTONIC = 0
    REALTIME = 1
    BOOTTIME = 2
    TAI = 3


@dataclass(frozen=True, slots=True)
class Wakeup:
    """One armed timer that wakes a thread. Times are in ns since boot."""

    address: bytes  # hashed by the kernel, yet the same in every reading
    base: int  # a TimerBase
    soft_ns: int  # not before this
    hard_ns: int  # not after this, if the machine can help it

    @property
    def slack_ns(self) -> int:
        """How much later than asked for the sleeper lets itself be woken."""
        return self.hard_ns - self.soft_ns


@dataclass(frozen=True, slots=True)
class Reading:
    """What /proc/timer_list said at one moment."""

    now_ns: int  # CLOCK_MONOTONIC
    wakeups: frozenset[Wakeup]
    # The same by what the text says of each.
    by_text: Mapping[tuple[bytes, ...], Wakeup] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A thread that was stopped in a sleep with an end.

    One whose end is known otherwise takes part all the same: its timer is no
    choice for the others.
    """

    tid: Tid
    base: TimerBase
    rest_ns_max: int  # what it asked for
    slack_ns_max: int
    rest_ns_min: int = -_SECOND_NS  # it may have been due, and not yet woken
    slack_is_share: bool = False  # at least a thousandth of what it waits for


@dataclass(frozen=True, slots=True)
class Remaining:
    """How long a thread had still to sleep when it was stopped."""

    ns: int
    exact: bool  # False: an upper bound


def read() -> bytes | None:
    """The text as it is now; None where we may not read it (root only)."""
    try:
        fd = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = b""
        while chunk := os.read(fd, _CHUNK_BYTES):
            text += chunk
            if len(text) > TEXT_BYTES_MAX:
                return None
    except OSError:
        return None
    finally:
        os.close(fd)
    return text


def taken_at_ns(text: bytes) -> int | None:
    """When the text was made, on CLOCK_MONOTONIC; None if it is something else."""
    header = _NOW.search(text[:256])
    return int(header[1]) if header else None


def parse(text: bytes) -> Reading | None:
    """What the text of /proc/timer_list says; None if it is something else.

    A line that is not understood is passed over: what is missing here makes a
    sleep longer (Remaining.exact), never wrong.
    """
    now_ns = taken_at_ns(text)
    if now_ns is None:
        return None
    base = offset_ns = 0
    address: bytes | None = None
    found: dict[tuple[bytes, ...], Wakeup] = {}
    for line in text.split(b"\n"):
        if match := _EXPIRES.match(line):
            if address is not None:
                soft, hard = (int(word) - offset_ns for word in match.groups())
                if soft <= hard:
                    key = address, *match.groups()
                    found[key] = Wakeup(address, base % 4, soft, hard)
            address = None
        elif line.startswith(b" #"):
            match = _TIMER.match(line)
            address = match[1] if match else None
        elif match := _CLOCK.match(line):
            base, offset_ns = int(match[1]), 0
        elif match := _OFFSET.match(line):
            offset_ns = int(match[1])
    return Reading(now_ns, frozenset(found.values()), found)


def parse_since(before: Reading, text: bytes) -> Reading | None:
    """What a later text says of the timers that were there ``before``; in a hurry."""
    now_ns = taken_at_ns(text)
    if now_ns is None:
        return None
    still = before.by_text.keys() & set(_WAKEUP.findall(text))
    return Reading(now_ns, frozenset(before.by_text[key] for key in still))


def remaining(
    before: Reading, after: Reading, sleepers: Sequence[Sleeper]
) -> dict[Tid, Remaining]:
    """How long each of ``sleepers`` had still to sleep; those not found are left out.

    All of them slept when ``before`` was read, and were stopped when ``after`` was.
    Where several timers fit, the latest of them counts: a sleep may last longer
    than asked for, never shorter (nanosleep(2)).
    """
    gone = sorted(before.wakeups - after.wakeups, key=_SOFT_NS)
    soft_ns = [wakeup.soft_ns for wakeup in gone]
    fitting: dict[Tid, set[Wakeup]] = {}
    crowded: dict[Tid, Wakeup] = {}
    for sleeper in sleepers:
        first = bisect_left(soft_ns, after.now_ns + sleeper.rest_ns_min)
        end = bisect_right(soft_ns, after.now_ns + sleeper.rest_ns_max)
        fits = (w for w in reversed(gone[first:end]) if _fits(w, sleeper, after.now_ns))
        if end - first <= _CHOICES_MAX:
            fitting[sleeper.tid] = set(fits)
        elif latest := next(fits, None):
            crowded[sleeper.tid] = latest
    found = {}
    for tid, wakeup in _settle(fitting).items():
        ns = max(0, wakeup.soft_ns - after.now_ns)
        found[tid] = Remaining(ns, exact=True)
    for tid, wakeups in fitting.items():
        if tid not in found and wakeups:
            ns = max(w.soft_ns for w in wakeups) - after.now_ns
            found[tid] = Remaining(max(0, ns), exact=False)
    for tid, wakeup in crowded.items():
        ns = max(0, wakeup.soft_ns - after.now_ns)
        found[tid] = Remaining(ns, exact=False)
    return found


def _fits(wakeup: Wakeup, sleeper: Sleeper, now_ns: int) -> bool:
    rest_ns = wakeup.soft_ns - now_ns
    least_ns = (
        min(rest_ns // 1000, SHARED_SLACK_NS_MAX) if sleeper.slack_is_share else 0
    )
    return (
        wakeup.base == sleeper.base
        and sleeper.rest_ns_min <= rest_ns <= sleeper.rest_ns_max
        and least_ns <= wakeup.slack_ns <= sleeper.slack_ns_max
    )


def _settle(fitting: Mapping[Tid, set[Wakeup]]) -> dict[Tid, Wakeup]:
    """Give every thread that has one choice its timer, until nobody has just one.

    A timer given to one thread is no choice for the others any more; ``fitting``
    shrinks accordingly.
    """
    settled: dict[Tid, Wakeup] = {}
    waiting = [tid for tid, wakeups in fitting.items() if len(wakeups) == 1]
    while waiting:
        tid = waiting.pop()
        if tid in settled or len(fitting[tid]) != 1:
            continue
        (wakeup,) = fitting[tid]
        settled[tid] = wakeup
        for other, wakeups in fitting.items():
            if other != tid and wakeup in wakeups:
                wakeups.discard(wakeup)
                if len(wakeups) == 1:
                    waiting.append(other)
    return settled
