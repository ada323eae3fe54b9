// The signal frame from which a task takes its true state back: see inject.c.

#pragma once

#include <stdint.h>

#include "api.h"

enum word { // indices into task_registers, as in user_regs_struct
    R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI,
    ORIG_RAX, RIP, CS, EFLAGS, RSP, SS, FS_BASE, GS_BASE, DS, ES, FS, GS,
};

enum {
    EFLAGS_TRAP = 0x100,
    EFLAGS_DIRECTION = 0x400,
    FRAME_FPSTATE_OFFSET = 1024, // behind the frame, 64-byte aligned in a page
    XSTATE_BYTES_MAX = 16384,
    FRAME_BYTES_MAX = FRAME_FPSTATE_OFFSET + XSTATE_BYTES_MAX + 4,
};

// Write to `destination` the frame that will lie at `address` in the tracee, for
// rt_sigreturn(2). Returns the bytes used, FRAME_BYTES_MAX at most, or -errno.
int make_frame(void *destination, uint64_t address,
               const struct task_registers *registers, const void *xstate,
               uint32_t xstate_size, uint64_t mask);
