"""What is mapped where in a process, and how that changes between two looks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Final

from precopy.page_set import PageSet


class Prot(IntFlag):
    """What the process may do with a mapping: mmap(2)."""

    READ = 1
    WRITE = 2
    EXEC = 4


# The kernel's own, at the same address for all threads, and never ours to send.
KERNEL_NAMES: Final = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"})

# Those VmFlags (proc_pid_smaps(5)) without which a mapping is another one: it grows
# downwards, is made of huge pages, is device memory or has no pages of its own.
NATURE_FLAGS: Final = frozenset({"gd", "ht", "io", "pf", "mm"})
# Those that madvise(2) and mlock(2) set and take back.
ADVICE_FLAGS: Final = frozenset(
    {"lo", "sr", "rr", "dc", "de", "dd", "wf", "hg", "nh", "mg", "nr"}
)


@dataclass(frozen=True, slots=True)
class Vma:
    """One mapping, as /proc/PID/maps or smaps tells of it.

    ``device`` is as printed there ("08:01"); ``name`` is the text behind the inode,
    unescaped, with surrogateescape; ``flags`` are the VmFlags, empty when only maps
    was read.
    """

    start: int
    end: int
    prot: Prot
    shared: bool
    offset: int
    device: str
    inode: int
    name: str
    flags: frozenset[str] = frozenset()

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def is_kernel(self) -> bool:
        return self.inode == 0 and self.name in KERNEL_NAMES

    @property
    def is_anonymous(self) -> bool:
        return self.inode == 0 and not self.is_kernel

    @property
    def is_private_file(self) -> bool:
        return self.inode != 0 and not self.shared

    @property
    def is_stack(self) -> bool:
        return self.inode == 0 and self.name == "[stack]"

    @property
    def is_heap(self) -> bool:
        return self.inode == 0 and self.name == "[heap]"

    @property
    def is_ours(self) -> bool:
        """Whether its pages are ours to send: private, and not the kernel's."""
        return not self.shared and not self.is_kernel

    def part(self, start: int, end: int) -> "Vma":
        """The same mapping cut to ``start`` and ``end``, which lie within it."""
        if (start, end) == (self.start, self.end):
            return self
        # The offset of a mapping without a file means nothing (and is printed as 0).
        offset = self.offset + start - self.start if self.inode else self.offset
        return replace(self, start=start, end=end, offset=offset)

    def is_continued_by(self, other: "Vma") -> bool:
        """Whether ``other`` begins where this ends and is the same in all else."""
        return self.end == other.start and other == replace(
            self, start=other.start, end=other.end, offset=self._offset_at(other.start)
        )

    def _offset_at(self, address: int) -> int:
        return self.offset + address - self.start if self.inode else self.offset


@dataclass(frozen=True, slots=True)
class AddressSpaceChange:
    """What to do to one address space to make it another, range by range.

    ``removed`` is unmapped first, then ``added`` is mapped, empty; a range whose
    backing changed is in both. ``reprotected`` and ``readvised`` keep their pages: only
    the protection differs, or only flags of madvise(2) and mlock(2) or the name
    do (told apart only where both sides know the flags). Both may name one range.
    """

    removed: PageSet = PageSet.EMPTY
    added: tuple[Vma, ...] = ()
    reprotected: tuple[Vma, ...] = ()
    readvised: tuple[Vma, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.reprotected or self.readvised)

    @property
    def emptied(self) -> PageSet:
        """Where nothing of what was there before remains."""
        return self.removed | PageSet.of((vma.start, vma.end) for vma in self.added)


class AddressSpace:
    """The mappings of a process, in the order of their addresses."""

    __slots__ = ("_starts", "vmas")

    vmas: tuple[Vma, ...]

    def __init__(self, vmas: Iterable[Vma] = ()) -> None:
        """Raises ValueError if two overlap or one is empty."""
        self.vmas = tuple(sorted(vmas, key=lambda vma: vma.start))
        self._starts = [vma.start for vma in self.vmas]
        end = 0
        for vma in self.vmas:
            if not end <= vma.start < vma.end:
                raise ValueError(f"mappings overlap at {vma.start:#x}")
            end = vma.end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AddressSpace):
            return NotImplemented
        return self.vmas == other.vmas

    def __hash__(self) -> int:
        return hash(self.vmas)

    def __repr__(self) -> str:
        return f"<AddressSpace of {len(self.vmas)} mappings>"

    def find(self, address: int) -> Vma | None:
        """The mapping that ``address`` lies in."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self.vmas[at].end:
            return self.vmas[at]
        return None

    def ranges(self) -> PageSet:
        """All that is mapped."""
        return _ranges(self.vmas)

    def our_ranges(self) -> PageSet:
        """Where pages are ours to send: private mappings, without the kernel's."""
        return _ranges(vma for vma in self.vmas if vma.is_ours)

    def anonymous_ranges(self) -> PageSet:
        """Those of ours where a page that is not there reads as zero."""
        return _ranges(vma for vma in self.vmas if vma.is_ours and vma.is_anonymous)

    def private_file_ranges(self) -> PageSet:
        """Those of ours where a page that is not there reads as the file's."""
        return _ranges(vma for vma in self.vmas if vma.is_ours and not vma.is_anonymous)

    def changes_to(self, new: "AddressSpace") -> AddressSpaceChange:
        """What makes ``new`` of this; nothing where mappings were merely cut or joined.

        A mapping that went and came back the same between the two looks is not seen
        here: that is the tracker's to find (``Written.dropped``).
        """
        removed: list[tuple[int, int]] = []
        added: list[Vma] = []
        reprotected: list[Vma] = []
        readvised: list[Vma] = []
        for start, end, old_vma, new_vma in _overlay(self.vmas, new.vmas):
            if old_vma is None or new_vma is None or not _same(old_vma, new_vma):
                if old_vma is not None:
                    removed.append((start, end))
                if new_vma is not None:
                    _extend(added, new_vma.part(start, end))
                continue
            if old_vma.prot != new_vma.prot:
                _extend(reprotected, new_vma.part(start, end))
            if _advice(old_vma) != _advice(new_vma) and old_vma.flags and new_vma.flags:
                _extend(readvised, new_vma.part(start, end))
        return AddressSpaceChange(
            PageSet.of(removed), tuple(added), tuple(reprotected), tuple(readvised)
        )


def _ranges(vmas: Iterable[Vma]) -> PageSet:
    return PageSet.of((vma.start, vma.end) for vma in vmas)


def _same(old: Vma, new: Vma) -> bool:
    """Whether the pages of one, where both lie, are the pages of the other.

    Both overlap. Names are not compared but for the kernel's: a file can be renamed or
    unlinked, anonymous memory can be named, and break and stack can be declared.
    """
    if old.shared != new.shared or old.is_kernel != new.is_kernel:
        return False
    if old.is_kernel and old.name != new.name:
        return False
    if (old.device, old.inode) != (new.device, new.inode):
        return False
    if old.inode and old.offset - old.start != new.offset - new.start:
        return False
    if old.flags and new.flags:
        return old.flags & NATURE_FLAGS == new.flags & NATURE_FLAGS
    return True


def _advice(vma: Vma) -> tuple[frozenset[str], str]:
    return vma.flags & ADVICE_FLAGS, "" if vma.inode else vma.name


def _extend(vmas: list[Vma], piece: Vma) -> None:
    """Append ``piece``, in one with the last if it goes on from there."""
    if vmas and vmas[-1].is_continued_by(piece):
        vmas[-1] = replace(vmas[-1], end=piece.end)
    else:
        vmas.append(piece)


def _overlay(
    old: tuple[Vma, ...], new: tuple[Vma, ...]
) -> Iterator[tuple[int, int, Vma | None, Vma | None]]:
    """Cut both at all borders: (start, end, the old mapping there, the new one)."""
    i = j = 0
    at = 0
    while i < len(old) or j < len(new):
        o = old[i] if i < len(old) else None
        n = new[j] if j < len(new) else None
        covering_old = o if o is not None and o.start <= at else None
        covering_new = n if n is not None and n.start <= at else None
        end = min(
            *(vma.end if vma.start <= at else vma.start for vma in (o, n) if vma),
            1 << 64,
        )
        if covering_old or covering_new:
            yield at, end, covering_old, covering_new
        at = end
        i += o is not None and o.end <= at
        j += n is not None and n.end <= at
