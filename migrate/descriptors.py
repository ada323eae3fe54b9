"""The table of descriptors of a process: numbers, and what they stand for.

Two numbers may stand for one open file description (dup(2)): it has one position and
one set of flags. A description travels once, with all its numbers; what it is, its
kind knows (migrate.kinds).

Rebuilding is a puzzle of numbers. A new description gets the lowest free number, which
another may have to have in the end. So each waits at a spare number, unless chance put
it where it belongs; when all are there, they are put in place in one batch.
"""

import fcntl
import os
import struct
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cmp_to_key
from itertools import groupby
from typing import Final, TypeAlias

from migrate.errors import printable
from migrate.kernel import kcmp
from migrate.kernel.procfs import FdView
from migrate.kernel.remote import Batch, RemoteFd
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, DescriptorKind, Parking, Source, Target
from migrate.kinds.table import Dumped
from migrate.strangers import SIGNALS, stranger

_NAME: Final = "descriptors"
_INHERITED: Final = "inherited"  # the kind of what an earlier process has, too
_F_GETSIG: Final = 11  # linux/fcntl.h
_RLIMIT_NOFILE: Final = 7
_RLIMIT: Final = struct.Struct("<QQ")
_NUMBERS_MAX: Final = 1 << 20  # fs.nr_open, as it comes
# A description waits at one number, the ends of its pipe at two more.
_SPARES_EACH: Final = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """A descriptor: a number in use."""

    number: int
    description: int  # index into Descriptors.descriptions
    close_on_exec: bool


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What travels: a whole table."""

    descriptions: tuple[Dumped, ...] = ()
    slots: tuple[Slot, ...] = ()

    def numbers(self) -> list[list[int]]:
        """The numbers of each description, ascending."""
        found: list[list[int]] = [[] for _ in self.descriptions]
        for slot in self.slots:
            found[slot.description].append(slot.number)
        return [sorted(numbers) for numbers in found]

    def leans(self) -> bool:
        """Whether something of it depends on the tables of other processes."""
        return any(table.kind(dumped.kind).leans for dumped in self.descriptions)


# What the last dump() saw and made of it, by the lowest number of each description.
Memory: TypeAlias = dict[int, tuple[FdView, Dumped]]


def dump(source: Source, memory: Memory | None = None) -> Descriptors:
    """Every descriptor of ``source.views``, and which of them are one description.

    ``memory`` is empty at the first call and is handed over again at the next: what
    looks the same is not asked again.

    Raises:
        CannotCarry: one of them cannot travel.
    """
    memory = {} if memory is None else memory
    groups = _descriptions(source.views)
    known = [_remembered(source, group[0], memory) for group in groups]
    _require_no_owner(
        source, [g[0] for g, dumped in zip(groups, known, strict=True) if not dumped]
    )
    memory.clear()
    descriptions = []
    slots = []
    for index, (group, remembered) in enumerate(zip(groups, known, strict=True)):
        view = group[0]
        dumped = remembered or _dump_one(source, view)
        memory[view.number] = view, dumped
        descriptions.append(dumped)
        slots += [
            Slot(v.number, index, bool(v.info.flags & os.O_CLOEXEC)) for v in group
        ]
    return Descriptors(tuple(descriptions), tuple(slots))


def restore(
    new: Descriptors, target: Target, standing: Descriptors | None = None
) -> None:
    """Turn the table of ``target`` from ``standing`` into ``new``.

    ``standing`` is what the call before was given; what is the same is left alone.
    The first call has none: whatever ``target`` has open is closed.

    Raises:
        CannotCarry: something cannot be had here. The table is left half done.
        RemoteError: a system call failed. As above.
    """
    if new == standing and not new.leans():
        return
    _check(new)
    if standing is None:
        standing = Descriptors()
        target.remote.syscall("close_range", 0, 2**32 - 1, 0)
    numbers = {slot.number for slot in (*new.slots, *standing.slots)}
    spares = _SPARES_EACH * len(new.descriptions)
    with _room_for(numbers, spares, target) as limit:
        target.parking = Parking(numbers, limit)
        _Pass(new, standing, target).run()
    _finish(new, target)


class _Pass:
    """One call of restore(): the way from one table to the next."""

    def __init__(self, new: Descriptors, old: Descriptors, target: Target) -> None:
        self.new = new
        self.old = old
        self.target = target
        self.new_numbers = new.numbers()
        self.old_numbers = old.numbers()
        self.records = [table.unpack(dumped) for dumped in new.descriptions]
        # For each new description the old one that it goes on from, if any.
        self.from_old = _matches(new, old)
        # Where each new description is to be found until the end.
        self.held_at: dict[int, RemoteFd] = {}
        self.was = {slot.number: slot for slot in old.slots}
        self.filled: set[int] = set()  # numbers besides, which stand already

    def run(self) -> None:
        """Restore what is new, put all in place, close the rest."""
        self.target.vacated = self._vacated()
        kept = self._kept()
        self._park_moving(kept)
        self._rebuild([i for i in range(len(self.records)) if i not in kept])
        self._place(kept)

    def _vacated(self) -> frozenset[int]:
        return frozenset(
            number
            for index, old_index in self.from_old.items()
            for number in self.old_numbers[old_index]
            if number not in self.new_numbers[index]
        )

    def _kept(self) -> set[int]:
        """The new descriptions that stand already, brought up to date."""
        kept = {i for i in self._in_order(self.from_old) if self._brought_up(i)}
        families: defaultdict[Hashable, set[int]] = defaultdict(set)
        for index, dumped in enumerate(self.new.descriptions):
            family = getattr(table.descriptor_kind(dumped.kind), "family", None)
            if family is not None:
                families[dumped.kind, family(self.records[index])].add(index)
        for members in families.values():
            if not members <= kept:
                kept -= members
        return kept

    def _brought_up(self, index: int) -> bool:
        old = self.old.descriptions[self.from_old[index]]
        new = self.new.descriptions[index]
        if (old.kind, old.version) != (new.kind, new.version):
            return False
        module = table.descriptor_kind(new.kind)
        fd = RemoteFd(self.old_numbers[self.from_old[index]][0])
        # A set of others by number may have to be made anew though nothing of its
        # own has changed.
        touched = self.target.vacated and hasattr(module, "finish")
        if old == new and not touched and not module.KIND.leans:
            return True
        return module.update(table.unpack(old), self.records[index], self.target, fd)

    def _park_moving(self, kept: set[int]) -> None:
        """Hold on to what stands but has to have other numbers: a spare one each."""
        moving = [i for i in sorted(kept) if not self._has_its_numbers(i)]
        batch = self.target.remote.batch()
        for index in moving:
            number = self.old_numbers[self.from_old[index]][0]
            spare = self.target.parking.spare()
            batch.add("dup3", number, spare, os.O_CLOEXEC)
            self.held_at[index] = RemoteFd(spare)
        batch.run()
        for index in kept.difference(moving):
            self.held_at[index] = RemoteFd(self.new_numbers[index][0])

    def _has_its_numbers(self, index: int) -> bool:
        return set(self.new_numbers[index]) <= set(
            self.old_numbers[self.from_old[index]]
        )

    def _rebuild(self, indices: Sequence[int]) -> None:
        for kind, run in groupby(
            self._in_order(indices), key=lambda i: self.new.descriptions[i].kind
        ):
            self._rebuild_run(table.descriptor_kind(kind), list(run))

    def _rebuild_run(self, module: DescriptorKind, indices: list[int]) -> None:
        many = getattr(module, "restore_many", None)
        if many is None:
            for index in indices:
                self._take_in(
                    [index], [module.restore(self.records[index], self.target)]
                )
            return
        for chunk in self._chunks(indices):
            self._take_in(chunk, many([self.records[i] for i in chunk], self.target))

    def _chunks(self, indices: list[int]) -> Iterator[list[int]]:
        """Cut where one has several numbers: the next is opened behind all of them."""
        chunk: list[int] = []
        for index in indices:
            chunk.append(index)
            if len(self.new_numbers[index]) > 1:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _take_in(self, indices: Sequence[int], fds: Sequence[RemoteFd]) -> None:
        """What came to be where it belongs stays there; the others go aside.

        Numbers of theirs that are free are filled at once: so the next one is opened
        at the lowest number that is left, which mostly is its own.
        """
        strays = []
        for index, fd in zip(indices, fds, strict=True):
            if fd in self.new_numbers[index]:
                self.held_at[index] = fd
            else:
                strays.append((index, fd))
        spares = self.target.park_all([fd for _, fd in strays])
        for (index, _), spare in zip(strays, spares, strict=True):
            self.held_at[index] = spare
        batch = self.target.remote.batch()
        for index in indices:
            for number in self.new_numbers[index]:
                if number not in self.was and number != self.held_at[index]:
                    batch.add("dup3", self.held_at[index], number, os.O_CLOEXEC)
                    self.filled.add(number)
        batch.run()

    def _in_order(self, indices: Iterable[int]) -> list[int]:
        """By what kinds come after, then by number: as it was opened, mostly."""
        ranks = {
            module.KIND.name: rank if module.KIND.after else -1
            for rank, module in enumerate(table.descriptor_kinds())
        }
        return sorted(
            indices,
            key=lambda i: (ranks[self.new.descriptions[i].kind], self.new_numbers[i]),
        )

    def _place(self, kept: set[int]) -> None:
        """Close what is gone, and give every description its numbers."""
        wanted = {slot.number for slot in self.new.slots}
        batch = self.target.remote.batch()
        for number in self.was:
            if number not in wanted:
                batch.add("close", number)
        for slot in self.new.slots:
            self._fill(slot, kept, batch)
        for spare in {*self.held_at.values(), *self.target.parked.values()} - wanted:
            batch.add("close", spare)
        batch.run()
        self.target.parked.clear()

    def _fill(self, slot: Slot, kept: set[int], batch: Batch) -> None:
        held = self.held_at[slot.description]
        before = self.was.get(slot.number)
        stands = before is not None and (
            slot.description in kept
            and self.from_old[slot.description] == before.description
        )
        if stands or held == slot.number or slot.number in self.filled:
            closes = before.close_on_exec if stands and before is not None else True
            if closes != slot.close_on_exec:
                flags = fcntl.FD_CLOEXEC if slot.close_on_exec else 0
                batch.add("fcntl", slot.number, fcntl.F_SETFD, flags)
        else:
            flags = os.O_CLOEXEC if slot.close_on_exec else 0
            batch.add("dup3", held, slot.number, flags)


def _remembered(source: Source, view: FdView, memory: Memory) -> Dumped | None:
    if source.kin is not None and view.number in source.kin.inherited:
        return None
    before, dumped = memory.get(view.number, (None, None))
    if dumped is None or before != view or not table.kind(dumped.kind).in_view:
        return None
    return dumped


def _dump_one(source: Source, view: FdView) -> Dumped:
    if source.kin is not None and view.number in source.kin.inherited:
        module: DescriptorKind | None = table.descriptor_kind(_INHERITED)
    else:
        module = table.claim(view)
    if module is None:
        raise CannotCarry(
            _NAME,
            f"fd {view.number} of pid {view.pid} {stranger(view)}",
            pid=view.pid,
            fd=view.number,
        )
    return table.pack(module.KIND, module.dump(source, view))


def _finish(new: Descriptors, target: Target) -> None:
    """Let those kinds refer to other descriptors that do, now that all are there."""
    for dumped, numbers in zip(new.descriptions, new.numbers(), strict=True):
        finish = getattr(table.descriptor_kind(dumped.kind), "finish", None)
        if finish is not None:
            finish(table.unpack(dumped), target, RemoteFd(numbers[0]))


def _descriptions(views: Sequence[FdView]) -> list[list[FdView]]:
    """The descriptors by the description that they share, each group ascending."""

    def look(view: FdView) -> tuple[str, int, int, int, int]:
        flags = view.info.flags & ~os.O_CLOEXEC  # that is the number's own
        return view.link, view.device, view.inode, flags, view.info.position

    def order(one: FdView, other: FdView) -> int:
        return kcmp.order_files(one.pid, one.number, other.pid, other.number)

    # kcmp(2) costs a call for each comparison: only what looks alike is compared.
    groups: list[list[FdView]] = []
    for _, alike in groupby(sorted(views, key=look), key=look):
        candidates = list(alike)
        if len(candidates) == 1:
            groups.append(candidates)
            continue
        key = cmp_to_key(order)
        for _, same in groupby(sorted(candidates, key=key), key=key):
            groups.append(sorted(same, key=lambda view: view.number))
    return sorted(groups, key=lambda group: group[0].number)


def _require_no_owner(source: Source, views: Sequence[FdView]) -> None:
    """Signals about a descriptor are not carried: nobody may wait for any.

    Raises:
        CannotCarry: fcntl(F_SETOWN), F_SETSIG or O_ASYNC was used.
    """
    batch = source.remote.batch()
    for view in views:
        batch.add("fcntl", view.number, fcntl.F_GETOWN)
        batch.add("fcntl", view.number, _F_GETSIG)
    results = iter(batch.run(check=False))
    for view, owner, number in zip(views, results, results, strict=False):
        if owner or number or view.info.flags & os.O_ASYNC:
            raise CannotCarry(
                _NAME,
                f"fd {view.number} of pid {view.pid} ({printable(view.link)}) "
                f"{SIGNALS}",
                pid=view.pid,
                fd=view.number,
            )


def _matches(new: Descriptors, old: Descriptors) -> dict[int, int]:
    """Which old description each new one goes on from: one with a number of its own.

    Those that are equal find each other first.
    """
    was = {slot.number: slot.description for slot in old.slots}
    found: dict[int, int] = {}
    taken: set[int] = set()
    for demand_equal in (True, False):
        for slot in new.slots:
            index, candidate = slot.description, was.get(slot.number)
            if candidate is None or candidate in taken or index in found:
                continue
            equal = new.descriptions[index] == old.descriptions[candidate]
            if equal or not demand_equal:
                found[index] = candidate
                taken.add(candidate)
    return found


def _check(new: Descriptors) -> None:
    """The peer's word is input.

    Raises:
        CannotCarry: it is no table.
    """
    numbers = [slot.number for slot in new.slots]
    if (
        len(set(numbers)) != len(numbers)
        or not all(0 <= number < _NUMBERS_MAX for number in numbers)
        or {slot.description for slot in new.slots} != set(range(len(new.descriptions)))
    ):
        raise CannotCarry(_NAME, "The peer sent a table of descriptors that is none.")


@contextmanager
def _room_for(numbers: set[int], spares: int, target: Target) -> Iterator[int]:
    """A limit under which all the numbers and some spare ones fit, for this block.

    Gives the limit: numbers are below it.
    """
    remote = target.remote
    pointer = remote.space(_RLIMIT.size)
    remote.syscall("prlimit64", 0, _RLIMIT_NOFILE, 0, pointer)
    soft, hard = _RLIMIT.unpack(remote.read(pointer, _RLIMIT.size))
    remote.reset()
    highest = max(numbers, default=-1)
    limit = min(max(soft, highest + 1 + spares), hard)
    if highest >= limit:
        raise CannotCarry(
            _NAME,
            f"fd {highest} is in use, and at most {hard} descriptors are allowed here. "
            "Raise the hard limit of RLIMIT_NOFILE (see ulimit -Hn).",
            pid=target.pid,
            fd=highest,
        )
    if limit == soft:
        yield limit
        return
    remote.syscall("prlimit64", 0, _RLIMIT_NOFILE, _RLIMIT.pack(limit, hard), 0)
    try:
        yield limit
    finally:
        remote.syscall("prlimit64", 0, _RLIMIT_NOFILE, _RLIMIT.pack(soft, hard), 0)
