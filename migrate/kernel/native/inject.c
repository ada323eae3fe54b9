// System calls made by a tracee for us, many in one stop.
//
// A few dozen bytes of position-independent code walk a table of calls and leave
// each result beside its arguments. Two stops enclose the whole table, however
// long it is; a call costs about what it costs the tracee itself.
//
// Why it cures itself: a ptrace stop does not outlive the tracer. If we are
// killed while the tracee is in here, it simply runs on: through the rest of the
// table, then into rt_sigreturn(2) from a signal frame that holds its true
// registers, vector state and signal mask. It comes out where it was interrupted.
//
// Why the end is a signal: the tracee must stop there when it is traced and must
// not notice anything when it is not. The last call of each table is a tgkill(2)
// of itself with a signal that it neither handles nor lets through to a default
// action (signal(7): SIGURG, SIGWINCH and SIGCHLD are ignored by default). A
// traced task stops before delivery even of an ignored signal (ptrace(2),
// "Signal-delivery-stop"); an untraced one never sees it. A breakpoint
// instruction would kill an untraced one.

#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api.h"

// rbx: the next call, r12: calls left, r13: stack pointer for rt_sigreturn.
__asm__(".pushsection .rodata\n"
        "injected_begin:\n"
        "1: mov (%rbx), %rax\n"
        "   mov 8(%rbx), %rdi\n"
        "   mov 16(%rbx), %rsi\n"
        "   mov 24(%rbx), %rdx\n"
        "   mov 32(%rbx), %r10\n"
        "   mov 40(%rbx), %r8\n"
        "   mov 48(%rbx), %r9\n"
        "   syscall\n"
        "   mov %rax, 56(%rbx)\n"
        "   add $64, %rbx\n"
        "   dec %r12\n"
        "   jnz 1b\n"
        "   mov %r13, %rsp\n"
        "   mov $15, %eax\n" // __NR_rt_sigreturn
        "   syscall\n"
        "   ud2\n"
        "injected_end:\n"
        ".popsection\n");
extern const char injected_begin[], injected_end[];

enum word { // indices into task_registers, as in user_regs_struct
    R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI,
    ORIG_RAX, RIP, CS, EFLAGS, RSP, SS, FS_BASE, GS_BASE, DS, ES, FS, GS,
};

enum {
    SYSCALL_INSTRUCTION_BYTES = 2,
    // include/linux/errno.h: never seen by programs, but by tracers.
    ERESTARTSYS_ = 512,
    ERESTARTNOINTR_ = 513,
    ERESTARTNOHAND_ = 514,
    ERESTART_RESTARTBLOCK_ = 516,
    EFLAGS_TRAP = 0x100,
    EFLAGS_DIRECTION = 0x400,
    FRAME_FPSTATE_OFFSET = 1024, // behind the frame, 64-byte aligned in a page
    XSTATE_SW_OFFSET = 464,      // arch/x86/include/uapi/asm/sigcontext.h
    XSTATE_HEADER_END = 576,
};

#define FP_XSTATE_MAGIC1_ 0x46505853U
#define FP_XSTATE_MAGIC2_ 0x46505845U
#define XFEATURES_AMX 0x60000ULL // XTILECFG and XTILEDATA

static long trace(long request, int tid, void *address, void *data)
{
    long r = syscall(SYS_ptrace, request, (long)tid, address, data);
    return r < 0 ? -errno : r;
}

// One system call by a single step over a `syscall` instruction that the tracee
// already has (the vdso has one). This is how the workbench gets there and how
// it is taken away; in between the injected code does the work. The caller puts
// the registers back.
int64_t inject_step(int tid, uint64_t instruction, const struct remote_call *call,
                    int64_t *result)
{
    struct task_registers r;
    int e = tracee_get_registers(tid, &r);
    if (e < 0)
        return e;
    r.words[RIP] = instruction;
    r.words[RAX] = call->number;
    // -1: the restart logic must not take this for an interrupted call.
    r.words[ORIG_RAX] = -1ULL;
    r.words[RDI] = call->arguments[0];
    r.words[RSI] = call->arguments[1];
    r.words[RDX] = call->arguments[2];
    r.words[R10] = call->arguments[3];
    r.words[R8] = call->arguments[4];
    r.words[R9] = call->arguments[5];
    r.words[EFLAGS] &= ~(uint64_t)(EFLAGS_TRAP | EFLAGS_DIRECTION);
    e = tracee_set_registers(tid, &r);
    if (e < 0)
        return e;
    for (;;) {
        e = trace(PTRACE_SINGLESTEP, tid, NULL, NULL);
        if (e < 0)
            return e;
        int status;
        e = tracee_wait(tid, &status);
        if (e < 0)
            return e;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (WSTOPSIG(status) == SIGTRAP && status >> 16 == 0)
            break;
        if (WSTOPSIG(status) == SIGSEGV || WSTOPSIG(status) == SIGILL)
            return -EFAULT;
    }
    e = tracee_get_registers(tid, &r);
    if (e < 0)
        return e;
    *result = r.words[RAX];
    return 0;
}

uint32_t inject_code_size(void)
{
    return injected_end - injected_begin;
}

void inject_code(void *destination)
{
    memcpy(destination, injected_begin, inject_code_size());
}

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

uint32_t inject_frame_size(void)
{
    uint32_t a, bytes, c, d;
    __cpuid_count(0xd, 0, a, bytes, c, d);
    return FRAME_FPSTATE_OFFSET + bytes + sizeof(uint32_t);
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

// Write to `destination` the frame that will lie at `address` in the tracee.
// Returns the bytes used. The alternate stack is left as it is: ss_flags holds a
// value that do_sigaltstack() refuses, and rt_sigreturn ignores that error.
int inject_frame(void *destination, uint64_t address,
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

static int64_t copy(int pid, uint64_t remote, void *local, size_t bytes, int write)
{
    struct iovec here = {local, bytes}, there = {(void *)remote, bytes};
    ssize_t r = write ? process_vm_writev(pid, &here, 1, &there, 1, 0)
                      : process_vm_readv(pid, &here, 1, &there, 1, 0);
    if (r < 0)
        return -errno;
    return (size_t)r == bytes ? 0 : -EFAULT;
}

// Runs until the tracee has come to the done signal. Returns 0, or -errno with
// the tracee's whereabouts in outcome->status.
static int run_to_end(int tid, uint64_t last_call, int done_signal, int *born,
                      uint32_t born_max, struct batch_outcome *outcome)
{
    for (;;) {
        int e = tracee_continue(tid, 0);
        if (e < 0)
            return e;
        int status;
        e = tracee_wait(tid, &status);
        if (e < 0)
            return e;
        outcome->status = status;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        int signal = WSTOPSIG(status), event = status >> 16;
        if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_FORK) {
            uint64_t child;
            e = tracee_event_message(tid, &child);
            if (e < 0)
                return e;
            if (outcome->clones < born_max)
                born[outcome->clones] = child;
            outcome->clones++;
            continue;
        }
        if (event != 0)
            continue; // a job-control stop passes by
        if (signal == done_signal) {
            struct task_registers r;
            e = tracee_get_registers(tid, &r);
            if (e < 0)
                return e;
            if (r.words[RBX] == last_call)
                return 0;
        }
        if (signal == SIGSEGV || signal == SIGILL || signal == SIGBUS ||
            signal == SIGTRAP || signal == SIGSYS)
            return -EFAULT;
        outcome->deferred_signals |= 1ULL << (signal - 1);
    }
}

// Let the stopped tracee `tid` make `count` calls (at most bench->calls_max);
// results come back in the same array. Every other thread of the process must be
// stopped too. Leaves registers and mask changed: the caller has the true ones.
// born receives the thread ids of clones, as our pid namespace sees them.
int inject_batch(int pid, int tid, const struct workbench *bench,
                 struct remote_call *calls, uint32_t count, int done_signal,
                 int *born, uint32_t born_max, struct batch_outcome *outcome)
{
    *outcome = (struct batch_outcome){0};
    if (count == 0)
        return 0;
    if (count > bench->calls_max)
        return -E2BIG;
    // tgkill(2) wants ids as the tracee's own pid namespace has them; kill by
    // gettid is not to be had in a table, so the caller's array ends with it.
    int64_t e = copy(pid, bench->table, calls, count * sizeof *calls, 1);
    if (e < 0)
        return e;
    struct task_registers r;
    e = tracee_get_registers(tid, &r);
    if (e < 0)
        return e;
    e = tracee_set_mask(tid, ~(1ULL << (done_signal - 1)));
    if (e < 0)
        return e;
    r.words[RIP] = bench->code;
    r.words[RBX] = bench->table;
    r.words[R12] = count;
    r.words[R13] = bench->frame + 8; // rt_sigreturn looks 8 bytes below
    r.words[RSP] = bench->frame;
    r.words[ORIG_RAX] = -1ULL;
    r.words[EFLAGS] &= ~(uint64_t)(EFLAGS_TRAP | EFLAGS_DIRECTION);
    e = tracee_set_registers(tid, &r);
    if (e < 0)
        return e;
    uint64_t last = bench->table + (uint64_t)(count - 1) * sizeof *calls;
    e = run_to_end(tid, last, done_signal, born, born_max, outcome);
    if (e < 0)
        return e;
    return copy(pid, bench->table, calls, count * sizeof *calls, 0);
}
