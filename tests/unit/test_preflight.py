"""What a mapping is can be told from its line in smaps, also where none is at hand."""

import os
from dataclasses import replace

import pytest

from migrate.kernel import procfs
from migrate.preflight import memory
from migrate.preflight.subject import Subject
from precopy.address_space import AddressSpace
from precopy.ids import Pid

HERE = Pid(os.getpid())


def subject(*lines: str) -> Subject:
    """Ourselves, but for what is mapped: our own kernel block, and ``lines``."""
    ours = Subject.of(HERE)
    block = [vma for vma in ours.space.vmas if vma.is_kernel]
    smaps = "".join(f"{line}\n" for line in lines).encode()
    space = procfs.parse_smaps(smaps).vmas
    return replace(ours, space=AddressSpace((*space, *block)), protection_keys=False)


def vma(name: str = "", access: str = "rw-p", flags: str = "rd wr mr mw me") -> str:
    """The lines of one mapping."""
    return f"10000-11000 {access} 00000000 00:00 0    {name}\nVmFlags: {flags} "


@pytest.mark.parametrize(
    "lines",
    [
        vma(),
        vma("[stack]", flags="rd wr mr mw me gd"),
        vma("[heap]", flags="rd wr mr mw me lo"),
        vma("[anon:glibc: malloc]"),
        vma("", "---p", "mr mw me nr"),
        vma("", "rw-p", "rd wr hg mg dd dc wf dp"),
    ],
)
def test_private_memory_can_go(lines: str) -> None:
    assert list(memory.reasons(subject(lines))) == []


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (vma("", "rw-s"), "shared_memory"),
        (vma("/memfd:a b\\012 (deleted)", "rw-p", "rd wr ht"), "hugetlb"),
        (vma("/SYSV0000beef (deleted)", "rw-s"), "sysv_shm"),
        (vma("/anon_hugepage (deleted)", flags="rd wr ht"), "hugetlb"),
        (vma("", flags="rd wr ht"), "hugetlb"),
        (vma("[uprobes]", "--xp"), "uprobes"),
        (vma("anon_inode:[perf_event]", "rw-s", "rd wr sh"), "device"),
        (vma("socket:[12345]", "rw-s"), "socket"),
        (vma("/dev/dri/card0", "rw-s", "rd wr sh pf io dd"), "device"),
        (vma("/dev/mem", "rw-s", "rd wr sh io pf"), "device"),
        (vma("", flags="rd wr uw"), "userfaultfd"),
        (vma("", flags="rd wr sl"), "sealed"),
    ],
)
def test_what_is_not_ours_alone_is_refused(lines: str, kind: str) -> None:
    (reason,) = memory.reasons(subject(lines))
    assert reason.kind == kind and reason.pid == HERE
    assert "mapped at 0x10000-0x11000, which cannot be carried." in reason.message
    assert reason.message.isprintable()


def test_memory_above_47_bits_is_refused() -> None:
    far = "ff000000000000-ff000000001000 rw-p 00000000 00:00 0 \nVmFlags: rd wr "
    kinds = [reason.kind for reason in memory.reasons(subject(far))]
    assert kinds == ["address"]


def test_many_of_a_kind_are_one_reason() -> None:
    lines = [
        vma("", "rw-s").replace("10000-11000", f"{at:x}000-{at + 1:x}000")
        for at in (16, 20, 24)
    ]
    (reason,) = memory.reasons(subject(*lines))
    assert "at 0x10000-0x11000 and 2 more places" in reason.message


def test_without_a_vdso_of_ours_it_is_refused() -> None:
    bare = replace(subject(), space=AddressSpace())
    assert [reason.kind for reason in memory.reasons(bare)] == ["vdso"]
