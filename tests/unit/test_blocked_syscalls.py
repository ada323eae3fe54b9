"""What the registers of a thread say about the call that it was stopped in."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.kernel.blocked_syscalls import (
    Blocked,
    cured,
    original_number,
    parse_syscall,
    plainly_restarted,
    shortened,
)
from migrate.kernel.proc_text import MalformedText
from migrate.kernel.restartable_sequences import Sequence
from migrate.kernel.tracee import Registers

POLL, NANOSLEEP, FUTEX, RESTART_SYSCALL, EPOLL_WAIT = 7, 35, 202, 219, 232
FUTEX_WAIT_BITSET_PRIVATE = 0x89


def registers(**values: int) -> Registers:
    """All 0, but for these; negative ones as the kernel would have them."""
    zero = dict.fromkeys((field.name for field in fields(Registers)), 0)
    return Registers(**zero | {name: v % (1 << 64) for name, v in values.items()})


def test_an_EINTR_of_ours_becomes_a_restart() -> None:
    stopped = registers(rax=-4, orig_rax=EPOLL_WAIT, r10=-1, rip=0x1000)
    assert cured(stopped) == registers(
        rax=-514, orig_rax=EPOLL_WAIT, r10=-1, rip=0x1000
    )
    assert stopped.error == 4, "the argument was changed"


@pytest.mark.parametrize(
    "stopped",
    [
        registers(rax=-514, orig_rax=EPOLL_WAIT),
        registers(rax=-11, orig_rax=EPOLL_WAIT),
        registers(rax=-4, orig_rax=-1),
        registers(rax=-4, orig_rax=3),  # close(2) may have closed
        registers(rax=4, orig_rax=0),
    ],
)
def test_what_needs_no_cure_gets_none(stopped: Registers) -> None:
    assert cured(stopped) is None


def test_a_timeout_is_shortened_where_it_is_known_and_there_is_one() -> None:
    waits = registers(rax=-4, orig_rax=EPOLL_WAIT, r10=1000)
    assert shortened(waits, 700_000_001).r10 == 701
    assert shortened(waits, 0).r10 == 0
    for_ever = registers(rax=-4, orig_rax=EPOLL_WAIT, r10=0xFFFFFFFF)
    assert shortened(for_ever, 5) == for_ever
    receives = registers(rax=-4, orig_rax=45, r10=1000)
    assert shortened(receives, 5) == receives


def test_an_epoll_pwait2_goes_on_as_epoll_pwait() -> None:
    """That takes its timeout in a register; an endless one stays what it is."""
    waits = registers(rax=-4, orig_rax=441, rdi=3, r10=0x7000, r8=0x8000)
    on = registers(rax=-4, orig_rax=281, rdi=3, r10=2, r8=0x8000)
    assert shortened(waits, 1_000_001) == on
    for_ever = registers(rax=-4, orig_rax=441, rdi=3, r8=0x8000)
    assert shortened(for_ever, 5) == for_ever


def test_the_number_of_a_restarted_call_is_remembered() -> None:
    stopped = registers(orig_rax=RESTART_SYSCALL, rdi=5, rsp=0x7000, rip=0x1007)
    earlier = Blocked(NANOSLEEP, (5, 0, 0, 0, 0, 0), 0x7000, 0x1007)
    elsewhere = Blocked(POLL, (5, 0, 0, 0, 0, 0), 0x7008, 0x1007)
    assert original_number(stopped, earlier) == NANOSLEEP
    assert original_number(stopped, elsewhere) is None
    assert original_number(stopped, None) is None


def test_the_number_of_a_restarted_call_is_read_from_the_code() -> None:
    stopped = registers(orig_rax=RESTART_SYSCALL)
    code = b"\xb8\xca\0\0\0\x0f\x05"  # mov $202, %eax; syscall
    assert original_number(stopped, None, code) == FUTEX
    assert original_number(stopped, None, b"\xb8\x00\0\0\0\x0f\x05") is None
    assert original_number(stopped, None, b"\x48\x89\xf8\x90\x90\x0f\x05") is None


def test_a_call_with_a_number_of_its_own_has_that() -> None:
    assert original_number(registers(orig_rax=POLL), None) == POLL
    assert original_number(registers(orig_rax=-1), None) is None


def test_a_call_without_a_relative_timeout_is_just_issued_again() -> None:
    for_ever = registers(rax=-516, orig_rax=RESTART_SYSCALL, rdx=0xFFFFFFFF)
    assert plainly_restarted(for_ever, POLL) == registers(
        rax=-514, orig_rax=POLL, rdx=0xFFFFFFFF
    )
    until = registers(rax=-516, orig_rax=FUTEX, rsi=FUTEX_WAIT_BITSET_PRIVATE)
    assert plainly_restarted(until, FUTEX)
    waits = registers(rax=-516, orig_rax=FUTEX, rsi=0x80)  # FUTEX_WAIT_PRIVATE
    assert plainly_restarted(waits, FUTEX) is None
    polls = registers(rax=-516, orig_rax=POLL, rdx=1000)
    assert plainly_restarted(polls, POLL) is None


def test_syscall_of_proc_is_read() -> None:
    line = b"35 0x7ffd 0x0 0x1 0x2 0x3 0x4 0x7ffc 0x7f01\n"
    blocked = Blocked(35, (0x7FFD, 0, 1, 2, 3, 4), 0x7FFC, 0x7F01)
    assert parse_syscall(line) == blocked
    assert parse_syscall(b"running\n") is None
    assert parse_syscall(b"-1 0x7ffc 0x7f01\n") is None


@pytest.mark.parametrize(
    "text", [b"", b"35\n", b"35 0x1 0x2\n", b"walking\n", b"x" * 100, b"-2 " * 9]
)
def test_other_text_is_named(text: bytes) -> None:
    with pytest.raises(MalformedText):
        parse_syscall(text)


@given(st.binary())
def test_no_text_is_too_odd(text: bytes) -> None:
    try:
        parse_syscall(text)
    except MalformedText:
        pass


def test_a_sequence_ends_before_its_last_address() -> None:
    sequence = Sequence(0x1000, 0x10, 0x2000)
    assert [sequence.holds(a) for a in (0xFFF, 0x1000, 0x100F, 0x1010)] == [
        False,
        True,
        True,
        False,
    ]
