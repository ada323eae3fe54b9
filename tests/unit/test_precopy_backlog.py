"""What is held back is late, and never lost."""

from hypothesis import given
from hypothesis import strategies as st

from precopy.address_space import AddressSpace, Prot, Vma
from precopy.backlog import Backlog
from precopy.ids import PAGE_BYTES
from precopy.page_set import PageSet
from precopy.tracker import Written

PAGES = 12
SPACE = AddressSpace(
    [Vma(0, PAGES * PAGE_BYTES, Prot.READ, False, 0, "00:00", 0, "")],
)


def pages(*numbers: int) -> PageSet:
    return PageSet.of((n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in numbers)


def numbers(some: PageSet) -> list[int]:
    return [at // PAGE_BYTES for at in some.addresses()]


def wrote(*some: int) -> Written:
    return Written(data=pages(*some), dropped=PageSet.EMPTY)


def note(backlog: Backlog, written: Written) -> None:
    backlog.note(written, SPACE, PageSet.EMPTY)


def test_a_page_is_hot_when_each_of_the_last_looks_found_it_written() -> None:
    """The first look tells what is there, which says nothing."""
    backlog = Backlog()
    note(backlog, wrote(*range(PAGES)))
    assert not backlog.hot
    backlog.hand_out()
    note(backlog, wrote(1, 2, 3))
    assert not backlog.hot
    backlog.hand_out()
    note(backlog, wrote(2, 3, 4))
    assert backlog.hot == pages(2, 3)


def test_what_is_held_back_and_cools_down_is_handed_out() -> None:
    """It stays in the backlog until then, written again or not."""
    backlog = Backlog()
    note(backlog, wrote(*range(PAGES)))
    backlog.hand_out()
    note(backlog, wrote(1, 2))
    backlog.hand_out()
    note(backlog, wrote(1, 2, 3))
    assert backlog.hand_out(but=backlog.hot) == pages(3)
    assert backlog.pages == pages(1, 2)
    note(backlog, wrote(2))
    assert backlog.hot == pages(2)
    assert backlog.hand_out(but=backlog.hot) == pages(1)
    note(backlog, wrote())
    assert backlog.hand_out() == pages(2)


def test_what_the_process_gives_up_is_not_lacking() -> None:
    """Dropped, mapped anew or not mapped at all."""
    backlog = Backlog()
    note(backlog, wrote(1, 2, 3, 4))
    backlog.note(
        Written(data=pages(5), dropped=pages(1)),
        AddressSpace([Vma(0, 4 * PAGE_BYTES, Prot.READ, False, 0, "00:00", 0, "")]),
        pages(2),
    )
    assert backlog.pages == pages(3, 5)


class World:
    """A process that writes and gives back pages, and its copy."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = dict.fromkeys(range(PAGES), 0)
        self.copy: dict[int, int] = {}
        self.backlog = Backlog()
        self._written = set(self.memory)
        self._dropped: set[int] = set()
        self._clock = 0

    def write(self, page: int) -> None:
        self._clock += 1
        self.memory[page] = self._clock
        self._written.add(page)
        self._dropped.discard(page)

    def drop(self, page: int) -> None:
        if self.memory.pop(page, None) is not None:
            self._written.discard(page)
            self._dropped.add(page)

    def look(self) -> None:
        written = Written(pages(*self._written), pages(*self._dropped))
        note(self.backlog, written)
        for page in self._dropped:
            self.copy.pop(page, None)
        self._written, self._dropped = set(), set()

    def send(self, *, holding_back: bool) -> None:
        kept = self.backlog.hot if holding_back else PageSet.EMPTY
        for page in numbers(self.backlog.hand_out(but=kept)):
            # It may have been given back since; the next look will say so.
            if page in self.memory:
                self.copy[page] = self.memory[page]


ACTS = st.tuples(
    st.lists(st.integers(0, PAGES - 1), max_size=8),  # written before the look
    st.lists(st.integers(0, PAGES - 1), max_size=2),  # given back
    st.lists(st.integers(0, PAGES - 1), max_size=2),  # written before it is sent
    st.booleans(),
)


@given(st.lists(ACTS, max_size=12))
def test_after_the_last_look_the_copy_is_equal(
    rounds: list[tuple[list[int], list[int], list[int], bool]],
) -> None:
    """Each page written since it was last sent is sent while nothing runs."""
    world = World()
    for written, given_back, late, holding_back in rounds:
        for page in written:
            world.write(page)
        for page in given_back:
            world.drop(page)
        world.look()
        for page in late:
            world.write(page)
        world.send(holding_back=holding_back)
    world.look()
    world.send(holding_back=False)
    assert world.copy == world.memory
