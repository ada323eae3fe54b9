"""The code that the kernel puts into every process, vdso(7): it makes system calls."""

import struct
from typing import Final

from migrate.kernel import procfs
from precopy.errors import KernelError, TaskVanished
from precopy.ids import PAGE_BYTES, Pid
from precopy.task_memory import TaskMemory

SYSCALL_INSTRUCTION: Final = b"\x0f\x05"

_AT_SYSINFO_EHDR: Final = 33  # getauxval(3)
_AUXV: Final = struct.Struct("<QQ")
_ELF: Final = b"\x7fELF"
_VDSO_NAME: Final = b"linux-vdso.so"
_VDSO_PAGES_MAX: Final = 4


def syscall_instruction(pid: Pid, memory: TaskMemory) -> int:
    """The address of a `syscall` instruction in the tracee's vdso.

    Raises:
        TaskVanished: it has no vdso any more, because it has no memory any more.
    """
    found = _vdso_at_exec(pid, memory)
    if found is None:
        found = _vdso_as_mapped(pid, memory)
    if found is None:
        raise TaskVanished(pid)
    return found


def _vdso_at_exec(pid: Pid, memory: TaskMemory) -> int | None:
    """Its instruction where the last exec put the vdso, if that is still there.

    The list of mappings says so, too, but is long where there are many.
    """
    auxv = procfs.read(pid, "auxv")
    words = dict(_AUXV.iter_unpack(auxv[: len(auxv) & -_AUXV.size]))
    start = words.get(_AT_SYSINFO_EHDR)
    if start is None:
        return None
    code = b""
    try:
        for page in range(_VDSO_PAGES_MAX):
            code += memory.read(start + page * PAGE_BYTES, PAGE_BYTES)
            found = code.find(SYSCALL_INSTRUCTION)
            if not code.startswith(_ELF) or _VDSO_NAME not in code:
                return None
            if found >= 0:
                return int(start + found)
    except KernelError:
        return None  # it has been moved since
    return None


def _vdso_as_mapped(pid: Pid, memory: TaskMemory) -> int | None:
    for vma in procfs.read_maps(pid).vmas:
        if vma.name == "[vdso]":
            code = memory.read(vma.start, vma.end - vma.start)
            found = code.find(SYSCALL_INSTRUCTION)
            if found >= 0:
                return vma.start + found
    return None
