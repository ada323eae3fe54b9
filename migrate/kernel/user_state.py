"""Whether a processor state is one that a user's thread can have.

The kernel checks as well what it is told by PTRACE_SETREGSET, and has been wrong about
it before (a rip that is not canonical: CVE-2014-4699). So nothing gets there that no
source reads from a thread of its own. What a thread can set by itself is its own: the
trap flag, for one.
"""

import struct
from typing import Final

from migrate.kernel.tracee import XSTATE_BYTES_MAX, Registers, TaskState
from precopy.ids import USER_END

_REGISTERS_BYTES: Final = 27 * 8
_CODE: Final = 0x33  # __USER_CS, asm/segment.h
_STACK: Final = 0x2B  # __USER_DS
_USER: Final = 3  # the privilege level of a selector: its two lowest bits
# CF PF AF ZF SF TF IF DF OF RF AC ID, and bit 1, which is always set (asm/
# processor-flags.h). Not IOPL, NT, VM, VIF, VIP.
_FLAGS: Final = 0x0025_0FD7
# The legacy area, then the header of the XSAVE area: Intel SDM vol. 1, 13.4.
_HEADER_END: Final = 576
_MXCSR: Final = struct.Struct("<24xI")
_MXCSR_BITS: Final = 0x2_FFFF  # with MISALIGNSSE, AMD APM vol. 2, 11.5.10
_LAYOUT: Final = struct.Struct("<520xQ48s")  # XCOMP_BV, and what is reserved


def fault(state: TaskState) -> str:
    """What is wrong with it, as the rest of a sentence; empty if nothing is."""
    if len(state.registers) != _REGISTERS_BYTES:
        return f"{len(state.registers)} bytes of registers"
    registers = Registers.from_bytes(state.registers)
    if (registers.cs, registers.ss) != (_CODE, _STACK):
        return f"registers cs {registers.cs:#x} and ss {registers.ss:#x}"
    for selector in (registers.ds, registers.es, registers.fs, registers.gs):
        if selector and (selector > 0xFFFF or selector & 3 != _USER):
            return f"a segment register of {selector:#x}"
    if registers.eflags & ~_FLAGS:
        return f"the flags register {registers.eflags:#x}"
    for address in (registers.rip, registers.fs_base, registers.gs_base):
        if address >= USER_END:
            return f"a register rip, fs_base or gs_base of {address:#x}"
    if not 0 <= state.mask < 1 << 64:
        return "a signal mask of more than 64 signals"
    return _fault_of_vectors(state.xstate)


def _fault_of_vectors(xstate: bytes) -> str:
    if not _HEADER_END <= len(xstate) <= XSTATE_BYTES_MAX:
        return f"{len(xstate)} bytes of vector registers"
    (mxcsr,) = _MXCSR.unpack_from(xstate)
    if mxcsr & ~_MXCSR_BITS:
        return f"the register mxcsr {mxcsr:#x}"
    compacted, reserved = _LAYOUT.unpack_from(xstate)
    if compacted or any(reserved):
        return "vector registers in no standard format"
    return ""
