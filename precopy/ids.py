"""The numbers of a process's memory that must not be mistaken for one another."""

from typing import Final, NewType

Pid = NewType("Pid", int)
Tid = NewType("Tid", int)

PAGE_BYTES: Final = 4096
# Where user addresses end with four-level page tables; mmap() goes beyond only when
# asked to (Documentation/arch/x86/x86_64/5level-paging.rst).
USER_END: Final = 0x7FFF_FFFF_F000
