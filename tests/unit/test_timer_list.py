"""/proc/timer_list: who had how long to sleep, though no timer has a name."""

from hypothesis import given
from hypothesis import strategies as st

from migrate.kernel import timer_list
from migrate.kernel.timer_list import (
    Reading,
    Remaining,
    Sleeper,
    TimerBase,
    Wakeup,
    parse,
    remaining,
)
from precopy.ids import Tid

S = 1_000_000_000
MS = 1_000_000

# As Linux 6.18 prints it; the realtime base counts from 1970.
TEXT = b"""\
Timer List Version: v0.10
HRTIMER_MAX_CLOCK_BASES: 8
now at 1180289960701 nsecs

cpu: 0
 clock 0:
  .base:       00000000e69e7438
  .index:      0
  .resolution: 1 nsecs
  .offset:     0 nsecs
active timers:
 #0: <000000009c60fc92>, tick_nohz_handler, S:01
 # expires at 1180292000000-1180292000000 nsecs [in 2039299 to 2039299 nsecs]
 #1: <0000000040a0a9a8>, hrtimer_wakeup, S:01
 # expires at 1180434894005-1180435048004 nsecs [in 144933304 to 145087303 nsecs]
 #2: <00000000d5cba6d5>, timerfd_tmrproc, S:01
 # expires at 1180515283468-1180515283468 nsecs [in 225322767 to 225322767 nsecs]
 clock 1:
  .base:       00000000ea22cb50
  .index:      1
  .resolution: 1 nsecs
  .offset:     1795285752775875964 nsecs
active timers:
 #0: <00000000b1315f19>, hrtimer_wakeup, S:01
 # expires at 1795286952775875964-1795286952775925964 nsecs [in 1 to 2 nsecs]
 clock 4:
  .base:       000000004fecebed
  .index:      4
  .resolution: 1 nsecs
  .offset:     0 nsecs
active timers:
 #0: <00000000c4b88002>, hrtimer_wakeup, S:01
 # expires at 1202043160220-1202043210220 nsecs [in 21753199519 to 21753249519 nsecs]
  .expires_next   : 1180292000000 nsecs
"""


def wakeup(rest_ns: int, slack_ns: int = 50_000, *, base: int = 0) -> Wakeup:
    """A timer that goes off ``rest_ns`` after the second reading, which is at 0."""
    return Wakeup(b"%x" % abs(rest_ns), base, rest_ns, rest_ns + slack_ns)


def rest_of(
    gone: list[Wakeup], *sleepers: Sleeper, still: tuple[Wakeup, ...] = ()
) -> dict[Tid, Remaining]:
    """What is left for each, if these timers vanished between two readings."""
    before = Reading(-100, frozenset(gone) | frozenset(still))
    return remaining(before, Reading(0, frozenset(still)), sleepers)


def sleeper(tid: int, rest_ns_max: int, rest_ns_min: int = -S) -> Sleeper:
    return Sleeper(
        Tid(tid), TimerBase.MONOTONIC, rest_ns_max, 50_000, rest_ns_min=rest_ns_min
    )


def test_only_wakeups_count_and_all_clocks_are_told_apart() -> None:
    reading = parse(TEXT)
    assert reading is not None
    assert reading.now_ns == 1180289960701
    assert reading.wakeups == {
        Wakeup(b"0000000040a0a9a8", 0, 1180434894005, 1180435048004),
        # In ns since boot, like the rest.
        Wakeup(b"00000000b1315f19", 1, 1200 * S, 1200 * S + 50_000),
        # The base of timers that expire in a soft interrupt is the same clock.
        Wakeup(b"00000000c4b88002", 0, 1202043160220, 1202043210220),
    }


def test_another_file_is_no_timer_list() -> None:
    assert parse(b"") is None
    assert parse(b"Tgid:\t1\n" * 100 + b"now at 5 nsecs\n") is None


def test_a_timer_cut_short_is_passed_over() -> None:
    for length in range(len(TEXT)):
        reading = parse(TEXT[:length])
        if reading is not None:
            assert len(reading.wakeups) <= 3


@given(st.binary() | st.lists(st.sampled_from(TEXT.split(b"\n"))).map(b"\n".join))
def test_no_text_is_too_odd(text: bytes) -> None:
    parse(b"now at 5 nsecs\n" + text)
    parse(text)


@given(st.lists(st.tuples(st.integers(0, 90), st.binary(max_size=4)), max_size=5))
def test_a_damaged_list_gives_no_timer_that_ends_before_it_begins(
    damages: list[tuple[int, bytes]],
) -> None:
    text = TEXT
    for share, junk in damages:
        at = len(text) * share // 100
        text = text[:at] + junk + text[at + len(junk) :]
    reading = parse(text)
    if reading is not None:
        assert all(w.soft_ns <= w.hard_ns for w in reading.wakeups)


def test_the_timer_that_vanished_is_the_sleepers() -> None:
    other = wakeup(3 * S)
    found = rest_of([wakeup(700 * MS)], sleeper(1, S), still=(other,))
    assert found == {1: Remaining(700 * MS, exact=True)}


def test_a_timer_that_no_sleep_could_have_is_not_taken() -> None:
    """Longer than asked for, with more slack than it allows, or of another clock."""
    assert rest_of([wakeup(2 * S)], sleeper(1, S)) == {}
    assert rest_of([wakeup(S, 51_000)], sleeper(1, S)) == {}
    assert rest_of([wakeup(S, base=2)], sleeper(1, S)) == {}


def test_two_sleepers_of_different_length_are_told_apart() -> None:
    gone = [wakeup(5 * S), wakeup(300 * MS)]
    assert rest_of(gone, sleeper(1, 10 * S), sleeper(2, S)) == {
        1: Remaining(5 * S, exact=True),
        2: Remaining(300 * MS, exact=True),
    }


def test_two_that_nothing_tells_apart_sleep_no_shorter_than_they_would() -> None:
    gone = [wakeup(200 * MS), wakeup(900 * MS)]
    latest = Remaining(900 * MS, exact=False)
    assert rest_of(gone, sleeper(1, S), sleeper(2, S)) == {1: latest, 2: latest}


def test_one_whose_end_is_known_leaves_the_rest_to_the_others() -> None:
    gone = [wakeup(200 * MS), wakeup(900 * MS)]
    known = sleeper(1, 200 * MS, rest_ns_min=200 * MS)
    assert rest_of(gone, known, sleeper(2, S))[Tid(2)] == Remaining(
        900 * MS, exact=True
    )


def test_the_slack_of_a_poll_is_a_share_of_its_length() -> None:
    """A short slack belongs to a sleep, a long one to a poll, whatever the order."""
    poll = Sleeper(Tid(1), TimerBase.MONOTONIC, 1000 * S, 100 * MS, slack_is_share=True)
    gone = [wakeup(900 * S, 100 * MS), wakeup(950 * S)]
    assert rest_of(gone, poll, sleeper(2, 1000 * S)) == {
        1: Remaining(900 * S, exact=True),
        2: Remaining(950 * S, exact=True),
    }


def test_a_timer_that_is_due_leaves_nothing_to_sleep() -> None:
    assert rest_of([wakeup(-5 * MS)], sleeper(1, S)) == {1: Remaining(0, exact=True)}


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=8
    ),
    st.lists(st.integers(0, 100), max_size=4),
)
def test_nobody_is_woken_early(
    sleeps: list[tuple[int, int]], strangers: list[int]
) -> None:
    """Whatever else vanished meanwhile, no sleeper is given less than it has."""
    truth = {Tid(tid): min(asked, rest) * S for tid, (asked, rest) in enumerate(sleeps)}
    timers = [
        Wakeup(b"%x" % tid, 0, rest, rest + 50_000) for tid, rest in truth.items()
    ]
    timers += [wakeup(rest * S + 7) for rest in strangers]
    sleepers = [sleeper(tid, asked * S) for tid, (asked, _) in enumerate(sleeps)]
    found = rest_of(timers, *sleepers)
    assert set(found) == set(truth)
    for tid, rest in found.items():
        assert rest.ns >= truth[tid]
        assert rest.ns == truth[tid] or not rest.exact


def test_who_may_not_read_the_list_gets_none() -> None:
    text = timer_list.read()
    reading = timer_list.parse(text) if text else None
    assert (text is None) == (reading is None)
    assert reading is None or reading.now_ns > 0
