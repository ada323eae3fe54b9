"""The typed face of precopy/native/api.h."""

from typing import Literal, SupportsInt, overload

from typing_extensions import Buffer

class Cells:
    """A C array of integers, or a pointer to one."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...

class RunList:
    bounds: Cells
    capacity: int
    count: int

class PageScan:
    pagemap: int
    how: int
    ranges: Cells
    range_count: int
    chunk_bytes: int
    index: int
    address: int
    zero_frame: int
    own: RunList
    written: RunList
    swapped: RunList
    guarded: RunList
    lost: RunList
    places: Cells
    place_capacity: int
    place_count: int
    known: Cells
    known_count: int
    known_places: Cells
    known_index: int

class TaskMemory:
    pid: int
    mem: int

class _Lib:
    PAGE_SET_MINUS: int
    PAGE_SET_AND: int
    PAGE_SET_OR: int
    PAGE_SCAN_PROTECT: int
    PAGE_SCAN_CHECK: int
    PAGE_SCAN_GUARDS: int
    PAGE_SCAN_QUICK: int

    def page_set_combine(
        self,
        a: Cells,
        a_count: int,
        b: Cells,
        b_count: int,
        table: int,
        out: Cells,
        /,
    ) -> int: ...
    def page_set_check(
        self, bounds: Cells, count: int, low: int, high: int, /
    ) -> int: ...
    def page_set_bytes(self, bounds: Cells, count: int, /) -> int: ...
    def page_set_bridge(
        self, bounds: Cells, count: int, gap_bytes: int, out: Cells, /
    ) -> int: ...
    def page_set_cut(
        self,
        bounds: Cells,
        count: int,
        index: Cells,
        address: Cells,
        pages_max: int,
        out: Cells,
        /,
    ) -> int: ...
    def page_scan_run(self, scan: PageScan, /) -> int: ...
    def page_scan_knows_guards(self, pagemap: int, /) -> int: ...
    def page_list_run(self, scan: PageScan, /) -> int: ...
    def uffd_begin(self, uffd: int, /) -> int: ...
    def uffd_register(self, uffd: int, start: int, end: int, /) -> int: ...
    def uffd_marks_off(self, uffd: int, start: int, end: int, /) -> int: ...
    def memory_read_runs(
        self,
        memory: TaskMemory,
        bounds: Cells,
        count: int,
        buffer: Cells,
        got: Cells,
        /,
    ) -> int: ...
    def memory_write_runs(
        self,
        memory: TaskMemory,
        bounds: Cells,
        count: int,
        buffer: Cells,
        failed: Cells,
        /,
    ) -> int: ...
    def memory_zero_runs(
        self, memory: TaskMemory, bounds: Cells, count: int, failed: Cells, /
    ) -> int: ...
    def pages_split(
        self,
        buffer: Cells,
        bounds: Cells,
        count: int,
        holes: Cells,
        hole_count: int,
        data: Cells,
        data_count: Cells,
        zeros: Cells,
        zero_count: Cells,
        /,
    ) -> int: ...
    def pages_digest(
        self,
        buffer: Cells,
        bounds: Cells,
        count: int,
        base: int,
        key: Cells,
        digests: Cells,
        update: int,
        changed: Cells,
        /,
    ) -> int: ...

class _Ffi:
    @overload
    def new(self, cdecl: Literal["struct page_scan *"], /) -> PageScan: ...
    @overload
    def new(self, cdecl: Literal["struct task_memory *"], /) -> TaskMemory: ...
    @overload
    def new(self, cdecl: Literal["uint64_t *"], /) -> Cells: ...
    def cast(self, cdecl: Literal["uintptr_t"], value: Cells, /) -> SupportsInt: ...
    def from_buffer(
        self, cdecl: Literal["uint64_t[]", "uint32_t[]", "uint8_t[]"], buffer: Buffer, /
    ) -> Cells: ...

ffi: _Ffi
lib: _Lib
