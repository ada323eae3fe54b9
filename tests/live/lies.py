"""What a source can lie about, one thing at a time: ways to change what it says."""

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgspec

from migrate.descriptors import Descriptors, Slot
from migrate.image import FrozenTree, Layout, Outline, Process
from migrate.kernel.tracee import Registers
from migrate.kinds import table
from migrate.kinds.table import Dumped
from precopy.address_space import Vma
from precopy.ids import PAGE_BYTES
from precopy.page_stream import HEAD
from transport import messages as m

HUGE: Final = (1 << 64) - 1
KERNEL: Final = 0xFFFF_8000_0000_0000
NON_CANONICAL: Final = 1 << 48

Bytes: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Lie:
    """What is changed of what an honest source would say; ``said``: a part of the
    refusal.
    """

    said: str
    outline: Callable[[Outline], Outline] | None = None
    frozen: Callable[[FrozenTree], FrozenTree] | None = None
    layout: Callable[[Outline], Layout] | None = None  # sent before the first page
    pages: Callable[[Sequence[Bytes], Outline], Sequence[Bytes]] | None = None
    options: Callable[[m.Options], m.Options] | None = None
    more: tuple[str, ...] = ()  # options of the command line
    ends: tuple[str, str] = ("", "")  # at which failpoint the link ends, and how


# What is said of a process before the freeze.


def process(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    return lambda outline: Outline((replace(outline.processes[0], **fields),))


def with_vmas(change: Callable[[list[Vma]], list[Vma]]) -> Callable[[Outline], Outline]:
    def changed(outline: Outline) -> Outline:
        first = outline.processes[0]
        return Outline((replace(first, vmas=tuple(change(list(first.vmas)))),))

    return changed


def kernels(vmas: Iterable[Vma]) -> list[Vma]:
    return [vma for vma in vmas if vma.is_kernel]


def vdso_at(start: int) -> Callable[[Outline], Outline]:
    """The kernel's own block, all of it, so that its first mapping is at ``start``."""

    def change(vmas: list[Vma]) -> list[Vma]:
        own = [v for v in kernels(vmas) if v.name != "[vsyscall]"]
        by = start - own[0].start
        moved = [replace(v, start=v.start + by, end=v.end + by) for v in own]
        return [v for v in vmas if v not in own] + moved

    return with_vmas(change)


def over_the_vdso(vmas: list[Vma]) -> list[Vma]:
    (vdso,) = (v for v in vmas if v.name == "[vdso]")
    return [*vmas, replace(anonymous(vmas), start=vdso.start, end=vdso.end)]


def anonymous(vmas: Iterable[Vma]) -> Vma:
    """A mapping of the process that is its own, not the stack."""
    return next(v for v in vmas if v.is_ours and v.is_anonymous and not v.is_stack)


def one_vma(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    def change(vmas: list[Vma]) -> list[Vma]:
        chosen = anonymous(vmas)
        return [replace(v, **fields) if v == chosen else v for v in vmas]

    return with_vmas(change)


def file_vma(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    def change(vmas: list[Vma]) -> list[Vma]:
        chosen = next(v for v in vmas if v.inode)
        return [replace(v, **fields) if v == chosen else v for v in vmas]

    return with_vmas(change)


def mapped_file(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    def change(outline: Outline) -> Outline:
        first, *rest = outline.processes[0].files
        return process(files=(replace(first, **fields), *rest))(outline)

    return change


def tasks(count: int) -> Callable[[Outline], Outline]:
    def change(outline: Outline) -> Outline:
        first, *rest = outline.processes[0].tasks
        more = (replace(first, tid=first.tid + 1 + n, kinds=()) for n in range(count))
        return process(tasks=(first, *rest, *more))(outline)

    return change


def pid(number: int) -> Callable[[Outline], Outline]:
    def change(outline: Outline) -> Outline:
        first, *rest = outline.processes[0].tasks
        leader = replace(first, tid=number)
        return process(
            pid=number, process_group=number, session=number, tasks=(leader, *rest)
        )(outline)

    return change


# Records of kinds, of which only the bytes travel.


def record(name: str, *fields: Any) -> Dumped:  # noqa: ANN401
    """A record of the kind ``name``, whatever is in it."""
    return Dumped(name, table.kind(name).version, msgspec.msgpack.encode(fields[0]))


def put(kinds: Iterable[Dumped], new: Dumped) -> tuple[Dumped, ...]:
    return (*(d for d in kinds if d.kind != new.kind), new)


def of_process(name: str, /, **fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    """A record of the outline."""

    def change(outline: Outline) -> Outline:
        kinds = outline.processes[0].kinds
        return process(kinds=put(kinds, record(name, fields)))(outline)

    return change


def of_leader(name: str, /, **fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    def change(outline: Outline) -> Outline:
        first, *rest = outline.processes[0].tasks
        leader = replace(first, kinds=put(first.kinds, record(name, fields)))
        return process(tasks=(leader, *rest))(outline)

    return change


def credentials(**changed: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    """Those that the leader has, but for these."""

    def change(outline: Outline) -> Outline:
        (old,) = (
            dumped
            for dumped in outline.processes[0].tasks[0].kinds
            if dumped.kind == "credentials"
        )
        fields = msgspec.msgpack.decode(old.body)
        assert set(changed) <= set(fields), fields
        return of_leader("credentials", **{**fields, **changed})(outline)

    return change


def descriptor(name: str, /, **fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    """One more descriptor, number 77."""
    return slots(77, kind=name, **fields)


def slots(
    *numbers: int,
    kind: str = "device",
    **fields: Any,  # noqa: ANN401
) -> Callable[[Outline], Outline]:
    """One more description, with these numbers."""
    fields = fields or {"minor": 3, "flags": 0}

    def change(outline: Outline) -> Outline:
        old = outline.processes[0].descriptors
        here = len(old.descriptions)
        new = Descriptors(
            (*old.descriptions, record(kind, fields)),
            (*old.slots, *(Slot(number, here, False) for number in numbers)),
        )
        return process(descriptors=new)(outline)

    return change


def file(
    path: bytes, flags: int = 0, position: int = 0
) -> Callable[[Outline], Outline]:
    return descriptor("regular_file", path=path, flags=flags, position=position, size=0)


# What is said in the freeze.


def late(name: str, /, **fields: Any) -> Callable[[FrozenTree], FrozenTree]:  # noqa: ANN401
    def change(tree: FrozenTree) -> FrozenTree:
        (first,) = tree.processes
        assert first is not None
        kinds = put(first.kinds, record(name, fields))
        return replace(tree, processes=(replace(first, kinds=kinds),))

    return change


def late_of_leader(name: str, /, **fields: Any) -> Callable[[FrozenTree], FrozenTree]:  # noqa: ANN401
    return leader(
        lambda task: replace(task, kinds=put(task.kinds, record(name, fields)))
    )


def leader(change_task: Callable[[Any], Any]) -> Callable[[FrozenTree], FrozenTree]:
    def change(tree: FrozenTree) -> FrozenTree:
        (only,) = tree.processes
        assert only is not None
        first, *rest = only.tasks
        only = replace(only, tasks=(change_task(first), *rest))
        return replace(tree, processes=(only,))

    return change


def state(**fields: Any) -> Callable[[FrozenTree], FrozenTree]:  # noqa: ANN401
    return leader(lambda task: replace(task, state=replace(task.state, **fields)))


def registers(**words: int) -> Callable[[FrozenTree], FrozenTree]:
    def change(task: Any) -> Any:  # noqa: ANN401
        own = Registers.from_bytes(task.state.registers)
        raw = own.but(**words).to_bytes()
        return replace(task, state=replace(task.state, registers=raw))

    return leader(change)


def flags(bits: int) -> Callable[[FrozenTree], FrozenTree]:
    def change(task: Any) -> Any:  # noqa: ANN401
        own = Registers.from_bytes(task.state.registers)
        raw = own.but(eflags=own.eflags | bits).to_bytes()
        return replace(task, state=replace(task.state, registers=raw))

    return leader(change)


def vectors(at: int, data: bytes) -> Callable[[FrozenTree], FrozenTree]:
    """Other bytes in the vector state, at this offset."""

    def change(task: Any) -> Any:  # noqa: ANN401
        old = task.state.xstate
        xstate = old[:at] + data + old[at + len(data) :]
        return replace(task, state=replace(task.state, xstate=xstate))

    return leader(change)


def shorter_vectors(task: Any) -> Any:  # noqa: ANN401
    return replace(task, state=replace(task.state, xstate=task.state.xstate[:100]))


def layout_areas(**areas: Any) -> Callable[[FrozenTree], FrozenTree]:  # noqa: ANN401
    good = {
        "code": (0x40_0000, 0x40_1000),
        "data": (0x40_1000, 0x40_2000),
        "heap": (0x50_0000, 0x50_1000),
        "stack_start": 0x7FFF_0000_0000,
        "arguments": (0x7FFF_0000_1000, 0x7FFF_0000_1010),
        "environment": (0x7FFF_0000_1010, 0x7FFF_0000_1020),
        "auxv": bytes(16),
    }
    return late("memory_layout", **{**good, **areas})


def interval(real_us: int) -> Callable[[FrozenTree], FrozenTree]:
    rest = {"interval_us": 0, "expiry_us": 0}
    timer = {"interval_us": 0, "expiry_us": real_us}
    return late("interval_timers", real=rest, virtual=timer, profiling=rest)


def posix(**fields: int) -> Callable[[FrozenTree], FrozenTree]:
    good = {
        "id": 0,
        "clock": 1,
        "notify": 1,
        "signal": 0,
        "value": 0,
        "tid": 0,
        "interval_ns": 0,
        "expiry_ns": 0,
    }
    return late("posix_timer", timers=[{**good, **fields}])


def signals(count: int, info: bytes) -> Callable[[FrozenTree], FrozenTree]:
    return late("pending_signals", infos=[info] * count)


def limits(soft: int, hard: int) -> Callable[[FrozenTree], FrozenTree]:
    # 4: RLIMIT_CORE, which nothing here needs.
    one = {"soft": 1 << 62, "hard": 1 << 62}
    all_of_them = [one] * 4 + [{"soft": soft, "hard": hard}] + [one] * 11
    return late("limits", limits=all_of_them)


# Changes of mappings, and pages.


def no_layout(**fields: Any) -> Callable[[Outline], Layout]:  # noqa: ANN401
    return lambda outline: made_layout(**fields)


def made_layout(**fields: Any) -> Layout:  # noqa: ANN401
    nothing = dict.fromkeys(
        ("removed", "added", "reprotected", "readvised", "renewed", "files", "extents"),
        (),
    )
    return Layout(**{**nothing, **fields})


def without_first(outline: Outline) -> Layout:
    """Unmaps the memory that pages are about to come for."""
    ours = [v for v in outline.processes[0].vmas if v.is_ours and v.is_anonymous]
    return made_layout(removed=tuple((v.start, v.end) for v in ours))


def layout_with(where: str, **fields: Any) -> Callable[[Outline], Layout]:  # noqa: ANN401
    def make(outline: Outline) -> Layout:
        vma = replace(anonymous(outline.processes[0].vmas), **fields)
        return made_layout(**{where: (vma,)})

    return make


def one_page_at(
    address: Callable[[Process], int], index: int = 0
) -> Callable[[Sequence[Bytes], Outline], Sequence[Bytes]]:
    def change(buffers: Sequence[Bytes], outline: Outline) -> Sequence[Bytes]:
        start = address(outline.processes[0])
        return batch(index, [(start, start + PAGE_BYTES)], bytes(PAGE_BYTES))

    return change


def batch(index: int, runs: list[tuple[int, int]], payload: bytes) -> list[Bytes]:
    bounds = [edge for run in runs for edge in run]
    packed = struct.pack(f"<{len(bounds)}Q", *bounds)
    return [HEAD.pack(index, len(bounds), 0) + packed, payload]


def payload(
    change: Callable[[bytes], bytes],
) -> Callable[[Sequence[Bytes], Outline], Sequence[Bytes]]:
    return lambda buffers, outline: [buffers[0], change(bytes(buffers[1]))]


def head_counts(
    by: int,
) -> Callable[[Sequence[Bytes], Outline], Sequence[Bytes]]:
    """Another number of boundaries than come."""

    def change(buffers: Sequence[Bytes], outline: Outline) -> Sequence[Bytes]:
        index, data, zeros = HEAD.unpack_from(buffers[0])
        head = HEAD.pack(index, data + by, zeros) + bytes(buffers[0])[HEAD.size :]
        return [head, buffers[1]]

    return change


def runs(
    *bounds: int,
) -> Callable[[Sequence[Bytes], Outline], Sequence[Bytes]]:
    def change(buffers: Sequence[Bytes], outline: Outline) -> Sequence[Bytes]:
        packed = struct.pack(f"<{len(bounds)}Q", *bounds)
        return [HEAD.pack(0, len(bounds), 0) + packed, bytes(PAGE_BYTES)]

    return change


def of_vdso(process: Process) -> int:
    return next(v.start for v in process.vmas if v.name == "[vdso]")


def in_a_gap(process: Process) -> int:
    vmas = sorted(process.vmas, key=lambda v: v.start)
    return next(one.end for one, two in itertools.pairwise(vmas) if one.end < two.start)
