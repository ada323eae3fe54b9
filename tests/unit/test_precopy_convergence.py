"""Rounds go on while they help, and not longer."""

import math

import pytest

from precopy.address_space import AddressSpace, Prot, Vma
from precopy.convergence import FIXED_S, Convergence, Decision
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from precopy.rounds import RoundRecord, split_dropped, together
from precopy.tracker import Written

PAGES_A_SECOND = 100_000


def decisions(
    dirty: list[int],
    *,
    limit_s: float = 0.05,
    rounds_max: int = 30,
    pages: int = 200_000,
) -> list[Decision]:
    """After each round, when so many pages were dirty after it."""
    convergence = Convergence(limit_s, rounds_max)
    found = []
    for number, dirty_pages in enumerate(dirty):
        record = RoundRecord(number, pages=pages, duration_s=pages / PAGES_A_SECOND)
        convergence.record(record, dirty_pages)
        found.append(convergence.decide())
        pages = dirty_pages
    return found


def test_an_idle_process_is_stopped_after_one_round() -> None:
    """Nothing is dirty, whatever the limit."""
    assert decisions([0]) == [Decision.STOP_AND_COPY]
    assert decisions([0], limit_s=FIXED_S / 2) == [Decision.STOP_AND_COPY]


def test_rounds_go_on_until_the_estimate_is_low_enough() -> None:
    """4,500 pages take 45 ms at this speed, and the rest 5 ms."""
    assert decisions([50_000, 12_000, 4_500]) == [
        Decision.ANOTHER,
        Decision.ANOTHER,
        Decision.STOP_AND_COPY,
    ]
    assert decisions([50_000, 12_000, 4_501])[-1] is Decision.ANOTHER


def test_two_rounds_that_did_not_help_are_a_stall() -> None:
    """One is not: programs breathe."""
    assert decisions([50_000, 50_000]) == [Decision.ANOTHER] * 2
    assert decisions([50_000, 50_000, 46_000])[-1] is Decision.STALLED
    assert decisions([50_000, 50_000, 44_000])[-1] is Decision.ANOTHER
    assert decisions([50_000, 90_000, 20_000])[-1] is Decision.ANOTHER


def test_so_many_rounds_and_no_more() -> None:
    """Even if they still shrink."""
    shrinking = [100_000 // 2**n for n in range(4)]
    assert decisions(shrinking, rounds_max=4) == [Decision.ANOTHER] * 3 + [
        Decision.STALLED
    ]
    assert decisions([0], rounds_max=1) == [Decision.STOP_AND_COPY]
    assert Convergence(0.05, 0).decide() is Decision.STALLED


def test_before_the_first_round_nothing_is_known() -> None:
    """So there is a first round."""
    convergence = Convergence(0.05, 30)
    assert convergence.decide() is Decision.ANOTHER
    assert math.isinf(convergence.estimate_s)


def test_the_estimate_is_that_of_the_speed_of_late() -> None:
    """A tiny round, which is all latency, does not make the link look slow."""
    convergence = Convergence(0.05, 30, fixed_s=0.01)
    convergence.record(RoundRecord(1, pages=100_000, duration_s=1.0), 1_000)
    assert convergence.throughput_bytes_s == pytest.approx(100_000 * PAGE_BYTES)
    assert convergence.estimate_s == pytest.approx(0.02)
    convergence.record(RoundRecord(2, pages=1, duration_s=0.01), 1_000)
    assert convergence.estimate_s == pytest.approx(0.02, rel=0.02)


def test_a_round_that_sent_nothing_tells_no_speed() -> None:
    """Zero pages are named, not sent."""
    convergence = Convergence(0.05, 30)
    convergence.record(RoundRecord(1, zero_pages=9, duration_s=0.1), 5)
    assert math.isinf(convergence.estimate_s)
    assert convergence.decide() is Decision.ANOTHER


def mapping(first: int, last: int, inode: int = 0) -> Vma:
    start, end = first * PAGE_BYTES, last * PAGE_BYTES
    return Vma(start, end, Prot.READ, False, 0, "00:00", inode, "")


def pages(*numbers: int) -> PageSet:
    return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in numbers)


def test_dropped_pages_are_told_apart_by_their_mapping() -> None:
    """Zeros in memory, the file again in files, nothing where nothing is."""
    space = AddressSpace([mapping(0, 4), mapping(4, 8, inode=3)])
    split = split_dropped(pages(3, 4, 9), space)
    assert (split.zeros, split.remapped) == (pages(3), pages(4))


def test_two_takes_make_one_in_which_the_later_is_right() -> None:
    """What is not mapped any more is left out."""
    space = AddressSpace([mapping(0, 8)])
    earlier = Written(data=pages(1, 2, 9), dropped=pages(4, 5, 10))
    later = Written(data=pages(3, 4), dropped=pages(2, 6))
    assert together(earlier, later, space) == Written(
        data=pages(1, 3, 4), dropped=pages(2, 5, 6)
    )


def test_hot_pages_are_held_back_where_that_helps() -> None:
    """They fit into the freeze, or most of what is sent is not hot."""
    convergence = Convergence(0.055, 30, fixed_s=0.005)
    convergence.record(
        RoundRecord(1, pages=100_000, duration_s=100_000 / PAGES_A_SECOND), 50_000
    )
    assert convergence.holds_back(5_000, 5_000)
    assert not convergence.holds_back(5_001, 5_001)
    assert convergence.holds_back(20_000, 40_000)
    assert not convergence.holds_back(20_001, 40_000)


def test_a_process_that_was_slowed_down_gets_another_chance() -> None:
    """What it did before says nothing of what it does now; rounds are counted on."""
    convergence = Convergence(0.05, 6)
    for number in range(3):
        record = RoundRecord(number, pages=50_000, duration_s=0.5)
        convergence.record(record, 50_000)
    assert convergence.decide() is Decision.STALLED
    convergence.slowed_down()
    for dirty in (50_000, 20_000):
        assert convergence.decide() is Decision.ANOTHER
        convergence.record(RoundRecord(4, pages=50_000, duration_s=0.5), dirty)
    assert convergence.decide() is Decision.ANOTHER
    convergence.record(RoundRecord(6, pages=50_000, duration_s=0.5), 10_000)
    assert convergence.decide() is Decision.STALLED and convergence.is_out_of_rounds


def test_the_rate_of_writing_is_that_of_the_last_round() -> None:
    """Not of what was held back before it."""
    convergence = Convergence(0.05, 30)
    convergence.record(RoundRecord(1, pages=9, duration_s=2.0), 5_000, 1_000)
    assert convergence.written_bytes_s == 500 * PAGE_BYTES


def test_a_limit_below_the_fixed_costs_has_nothing_to_do_with_memory() -> None:
    """So that nobody is slowed down for it."""
    assert Convergence(0.004, 30, fixed_s=0.005).is_beyond_memory
    assert not Convergence(0.005, 30, fixed_s=0.005).is_beyond_memory
