"""Two looks at an address space say what happened to each page between them."""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.address_space import AddressSpace, AddressSpaceChange, Prot, Vma
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet

RW = Prot.READ | Prot.WRITE


NO_FLAGS: frozenset[str] = frozenset()


def anonymous(
    first: int,
    last: int,
    prot: Prot = RW,
    *,
    name: str = "",
    flags: frozenset[str] = NO_FLAGS,
) -> Vma:
    """Pages ``first`` to ``last``, the last not included."""
    start, end = first * PAGE_BYTES, last * PAGE_BYTES
    return Vma(start, end, prot, False, 0, "00:00", 0, name, flags)


def of_file(
    first: int,
    last: int,
    page_of_file: int,
    *,
    prot: Prot = RW,
    shared: bool = False,
    flags: frozenset[str] = NO_FLAGS,
) -> Vma:
    start, end, offset = (page * PAGE_BYTES for page in (first, last, page_of_file))
    return Vma(start, end, prot, shared, offset, "08:01", 77, "/bin/true", flags)


class Page(NamedTuple):
    """What a page is to the process that reads and writes it."""

    backing: tuple[object, ...]
    prot: Prot
    advice: object


def page_model(space: AddressSpace) -> dict[int, Page]:
    pages = {}
    for vma in space.vmas:
        for at in range(vma.start, vma.end, PAGE_BYTES):
            backing: tuple[object, ...] = (vma.shared, vma.inode)
            if vma.inode:
                backing += (vma.offset + at - vma.start,)
            pages[at] = Page(backing, vma.prot, vma.flags)
    return pages


@st.composite
def address_spaces(draw: st.DrawFn) -> AddressSpace:
    borders = sorted(draw(st.sets(st.integers(1, 24), min_size=0, max_size=10)))
    vmas = []
    for first, last in pairwise(borders):
        kind = draw(st.sampled_from(["hole", "anonymous", "shared", "file", "other"]))
        prot = draw(st.sampled_from([RW, Prot.READ]))
        flags = frozenset(draw(st.sampled_from([["rd"], ["rd", "dc"]])))
        if kind == "anonymous":
            vmas.append(anonymous(first, last, prot, flags=flags))
        elif kind == "shared":
            vmas.append(
                of_file(first, last, first, shared=True, prot=prot, flags=flags)
            )
        elif kind == "file":
            vmas.append(of_file(first, last, first, prot=prot, flags=flags))
        elif kind == "other":
            vmas.append(of_file(first, last, first + 3, prot=prot, flags=flags))
    return AddressSpace(vmas)


@given(address_spaces(), address_spaces())
def test_a_change_says_of_each_page_what_happened_to_it(
    old: AddressSpace, new: AddressSpace
) -> None:
    """Against a model that knows only pages."""
    change = old.changes_to(new)
    before, after = page_model(old), page_model(new)
    gone = {
        at
        for at in before
        if at not in after or after[at].backing != before[at].backing
    }
    come = {at for at in after if at not in before or at in gone}
    kept = before.keys() & after.keys() - gone
    reprotected = {at for at in kept if before[at].prot != after[at].prot}
    readvised = {at for at in kept if before[at].advice != after[at].advice}

    assert set(change.removed.addresses()) == gone
    assert page_model(AddressSpace(change.added)) == {at: after[at] for at in come}
    assert page_model(AddressSpace(change.reprotected)) == {
        at: after[at] for at in reprotected
    }
    assert page_model(AddressSpace(change.readvised)) == {
        at: after[at] for at in readvised
    }
    assert set(change.emptied.addresses()) == gone | come
    assert bool(change) == (before != after)


def test_where_a_mapping_is_cut_does_not_matter() -> None:
    """mprotect() to and fro, or a userfaultfd, leaves two mappings where one was."""
    whole = AddressSpace([anonymous(1, 9), of_file(9, 12, 0)])
    cut = AddressSpace(
        [anonymous(1, 4), anonymous(4, 9), of_file(9, 10, 0), of_file(10, 12, 1)]
    )
    assert whole.changes_to(cut) == AddressSpaceChange()
    assert cut.changes_to(whole) == AddressSpaceChange()


def test_what_was_added_is_told_in_one_piece() -> None:
    """Also when it replaced two things."""
    old = AddressSpace([anonymous(1, 4), of_file(4, 6, 0)])
    new = AddressSpace([of_file(1, 6, 20)])
    change = old.changes_to(new)
    assert change.removed == PageSet.of([(PAGE_BYTES, 6 * PAGE_BYTES)])
    assert change.added == new.vmas


def test_heap_and_stack_grow_by_their_new_part_only() -> None:
    """Up and down; the pages that were there remain."""
    old = AddressSpace(
        [anonymous(1, 4, name="[heap]"), anonymous(20, 22, name="[stack]")]
    )
    new = AddressSpace(
        [anonymous(1, 6, name="[heap]"), anonymous(18, 22, name="[stack]")]
    )
    change = old.changes_to(new)
    assert not change.removed
    assert change.added == (
        anonymous(4, 6, name="[heap]"),
        anonymous(18, 20, name="[stack]"),
    )


def test_a_rename_is_no_new_mapping() -> None:
    """Neither of a file that was unlinked nor of memory that was given a name."""
    old = AddressSpace([anonymous(1, 4), of_file(4, 6, 0)])
    new = AddressSpace([anonymous(1, 4, name="[anon:x]"), of_file(4, 6, 0)])
    unlinked = AddressSpace(
        [new.vmas[0], replace(new.vmas[1], name="/bin/true (deleted)")]
    )
    assert not old.changes_to(new).emptied
    assert not new.changes_to(unlinked)


def test_a_mapping_that_grows_downwards_is_another_one() -> None:
    """MAP_GROWSDOWN cannot be given to a mapping that is there."""
    plain = AddressSpace([anonymous(1, 4, flags=frozenset({"rd"}))])
    stack = AddressSpace([anonymous(1, 4, flags=frozenset({"rd", "gd"}))])
    unknown = AddressSpace([anonymous(1, 4)])
    assert plain.changes_to(stack).added == stack.vmas
    assert not plain.changes_to(unknown)


def test_find_gives_the_mapping_around_an_address() -> None:
    """None before, between and behind them."""
    space = AddressSpace([of_file(4, 6, 0), anonymous(1, 3)])
    assert space.find(PAGE_BYTES - 1) is None
    assert space.find(PAGE_BYTES) == anonymous(1, 3)
    assert space.find(3 * PAGE_BYTES - 1) == anonymous(1, 3)
    assert space.find(3 * PAGE_BYTES) is None
    assert space.find(5 * PAGE_BYTES) == of_file(4, 6, 0)
    assert space.find(6 * PAGE_BYTES) is None


def test_ours_are_private_mappings_without_the_kernels() -> None:
    """Anonymous and private file mappings are told apart."""
    space = AddressSpace(
        [
            anonymous(1, 2),
            of_file(3, 4, 0),
            of_file(5, 6, 0, shared=True),
            anonymous(7, 8, name="[vdso]"),
            anonymous(9, 10, name="[stack]"),
        ]
    )
    pages = {at // PAGE_BYTES for at in space.our_ranges().addresses()}
    assert pages == {1, 3, 9}
    assert space.anonymous_ranges() | space.private_file_ranges() == space.our_ranges()
    assert list(space.private_file_ranges()) == [(3 * PAGE_BYTES, 4 * PAGE_BYTES)]
    assert space.ranges().pages == 5


def test_overlapping_mappings_are_refused() -> None:
    """And empty ones."""
    with pytest.raises(ValueError):
        AddressSpace([anonymous(1, 4), anonymous(3, 5)])
    with pytest.raises(ValueError):
        AddressSpace([anonymous(1, 1)])
