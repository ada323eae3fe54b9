// The signal frame from which a task takes its true state back, by rt_sigreturn(2).

#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "frame.h"

enum {
    SYSCALL_INSTRUCTION_BYTES = 2,
    // include/linux/errno.h: never seen by programs, but by tracers.
    ERESTARTSYS_ = 512,
    ERESTARTNOINTR_ = 513,
    ERESTARTNOHAND_ = 514,
    ERESTART_RESTARTBLOCK_ = 516,
    XSTATE_SW_OFFSET = 464, // arch/x86/include/uapi/asm/sigcontext.h
    XSTATE_HEADER_END = 576,
};

#define FP_XSTATE_MAGIC1_ 0x46505853U
#define FP_XSTATE_MAGIC2_ 0x46505845U
#define XFEATURES_AMX 0x60000ULL // XTILECFG and XTILEDATA

// Size of the standard-format XSAVE area for these features (CPUID leaf 0xd).
static uint32_t xstate_bytes(uint64_t features)
{
    uint32_t bytes = XSTATE_HEADER_END;
    for (int i = 2; i < 63; i++) {
        if (!(features >> i & 1))
            continue;
        uint32_t size, offset, c, d;
        __cpuid_count(0xd, i, size, offset, c, d);
        if (size && offset + size > bytes)
            bytes = offset + size;
    }
    return bytes;
}

// What the tracee would look like had it never been interrupted: an interrupted
// call is issued again (arch/x86/kernel/signal.c, arch_do_signal_or_restart).
static void restart(struct task_registers *r)
{
    if ((int64_t)r->words[ORIG_RAX] < 0)
        return;
    switch (-(int64_t)r->words[RAX]) {
    case ERESTARTSYS_:
    case ERESTARTNOINTR_:
    case ERESTARTNOHAND_:
        r->words[RAX] = r->words[ORIG_RAX];
        r->words[RIP] -= SYSCALL_INSTRUCTION_BYTES;
        break;
    case ERESTART_RESTARTBLOCK_:
        r->words[RAX] = SYS_restart_syscall;
        r->words[RIP] -= SYSCALL_INSTRUCTION_BYTES;
        break;
    }
}

// struct rt_sigframe of arch/x86/include/asm/sigframe.h, as rt_sigreturn reads it.
struct frame {
    uint64_t return_address;
    uint64_t uc_flags, uc_link;
    uint64_t stack_pointer, stack_flags, stack_size;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t di, si, bp, bx, dx, ax, cx, sp, ip, flags;
    uint16_t cs, gs, fs, ss;
    uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
    uint64_t uc_sigmask;
};

_Static_assert(sizeof(struct frame) == 8 + 40 + 256 + 8, "rt_sigframe to sigmask");
_Static_assert(sizeof(struct frame) < FRAME_FPSTATE_OFFSET, "fpstate lies behind");

// The alternate stack is left as it is: ss_flags holds a value that do_sigaltstack()
// refuses, and rt_sigreturn ignores that error.
int make_frame(void *destination, uint64_t address,
               const struct task_registers *registers, const void *xstate,
               uint32_t xstate_size, uint64_t mask)
{
    enum { UC_FP_XSTATE_ = 1, UC_SIGCONTEXT_SS_ = 2, UC_STRICT_RESTORE_SS_ = 4 };
    struct task_registers r = *registers;
    restart(&r);
    const uint64_t *w = r.words;
    struct frame f = {
        .uc_flags = UC_FP_XSTATE_ | UC_SIGCONTEXT_SS_ | UC_STRICT_RESTORE_SS_,
        .stack_flags = 0x7fffffff,
        .r8 = w[R8], .r9 = w[R9], .r10 = w[R10], .r11 = w[R11],
        .r12 = w[R12], .r13 = w[R13], .r14 = w[R14], .r15 = w[R15],
        .di = w[RDI], .si = w[RSI], .bp = w[RBP], .bx = w[RBX],
        .dx = w[RDX], .ax = w[RAX], .cx = w[RCX], .sp = w[RSP],
        .ip = w[RIP], .flags = w[EFLAGS],
        .cs = w[CS], .ss = w[SS],
        .fpstate = address + FRAME_FPSTATE_OFFSET,
        .uc_sigmask = mask,
    };
    memcpy(destination, &f, sizeof f);

    uint64_t supported, in_use;
    if (xstate_size < XSTATE_HEADER_END)
        return -EINVAL;
    memcpy(&supported, (const char *)xstate + XSTATE_SW_OFFSET, sizeof supported);
    memcpy(&in_use, (const char *)xstate + 512, sizeof in_use);
    // Without AMX in use the task's own state is smaller, and a frame that claims
    // more than the task has is taken for one without extended state
    // (arch/x86/kernel/fpu/signal.c, check_xstate_in_sigframe).
    if (!(in_use & XFEATURES_AMX))
        supported &= ~XFEATURES_AMX;
    uint32_t size = xstate_bytes(supported);
    if (size > xstate_size)
        size = xstate_size;
    char *fpstate = (char *)destination + FRAME_FPSTATE_OFFSET;
    memcpy(fpstate, xstate, size);
    struct {
        uint32_t magic1, extended_size;
        uint64_t xfeatures;
        uint32_t xstate_size, padding[7];
    } sw = {FP_XSTATE_MAGIC1_, size + sizeof(uint32_t), supported, size, {0}};
    memcpy(fpstate + XSTATE_SW_OFFSET, &sw, sizeof sw);
    uint32_t magic2 = FP_XSTATE_MAGIC2_;
    memcpy(fpstate + size, &magic2, sizeof magic2);
    return FRAME_FPSTATE_OFFSET + size + sizeof magic2;
}
