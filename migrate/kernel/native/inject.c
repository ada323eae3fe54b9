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
// not notice anything when it is not. After the table the code sends the task, by
// tgkill(2), a signal that it neither handles nor lets through to a default
// action (signal(7): SIGURG, SIGWINCH and SIGCHLD are ignored by default). A
// traced task stops before delivery even of an ignored signal (ptrace(2),
// "Signal-delivery-stop"); an untraced one never sees it. A breakpoint
// instruction would kill an untraced one.

#define _GNU_SOURCE
#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frame.h"

// rbx: the next call, r12: calls left, r13: stack pointer for rt_sigreturn,
// rbp: the signal that ends it. Ids are asked for here, for they have to be those of
// the task's own pid namespace.
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
        "   mov $39, %eax\n" // __NR_getpid
        "   syscall\n"
        "   mov %rax, %r14\n"
        "   mov $186, %eax\n" // __NR_gettid
        "   syscall\n"
        "   mov %r14, %rdi\n"
        "   mov %rax, %rsi\n"
        "   mov %rbp, %rdx\n"
        "   mov $234, %eax\n" // __NR_tgkill
        "   syscall\n"
        "injected_done:\n"
        "   mov %r13, %rsp\n"
        "   mov $15, %eax\n" // __NR_rt_sigreturn
        "   syscall\n"
        "   ud2\n"
        "injected_end:\n"
        ".popsection\n");
extern const char injected_begin[], injected_done[], injected_end[];



static long trace(long request, int tid, void *address, void *data)
{
    long r = syscall(SYS_ptrace, request, (long)tid, address, data);
    return r < 0 ? -errno : r;
}

static int set_registers(int tid, const struct task_registers *registers, uint64_t mask)
{
    int e = tracee_set_registers(tid, registers);
    return e < 0 ? e : tracee_set_mask(tid, mask);
}

// Single steps until the one over the call has been taken.
static int step_over(int tid)
{
    for (;;) {
        int e = trace(PTRACE_SINGLESTEP, tid, NULL, NULL);
        if (e < 0)
            return e;
        int status;
        e = tracee_wait(tid, &status);
        if (e < 0)
            return e;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (WSTOPSIG(status) == SIGTRAP && status >> 16 == 0)
            return 0;
        if (WSTOPSIG(status) == SIGSEGV || WSTOPSIG(status) == SIGILL)
            return -EFAULT;
    }
}

// Have the task stopped because we ask, and not for the trap of a step: a task whose
// tracer dies gets the signal that it has stopped for, and SIGTRAP would be the end of
// it. The stop that is asked for here is taken before the task comes to its next
// instruction. Signals that come first are held back.
static int rest(int tid, uint64_t *deferred_signals)
{
    int e = tracee_interrupt(tid);
    while (e >= 0) {
        e = tracee_continue(tid, 0);
        if (e < 0)
            break;
        int status;
        e = tracee_wait(tid, &status);
        if (e < 0)
            break;
        if (!WIFSTOPPED(status))
            return -ESRCH;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return 0;
        if (status >> 16 == 0 && WSTOPSIG(status) != SIGTRAP)
            *deferred_signals |= 1ULL << (WSTOPSIG(status) - 1);
    }
    return e;
}

// One system call by a single step over a `syscall` instruction that the tracee
// already has (the vdso has one). This is how the workbench gets there and how
// it is taken away; in between the injected code does the work. Registers and mask
// are the task's own again afterwards.
int inject_step(int tid, uint64_t instruction, struct remote_call *call,
                uint64_t *deferred_signals)
{
    struct task_registers own, r;
    uint64_t mask;
    int e = tracee_get_registers(tid, &own);
    if (e >= 0)
        e = tracee_get_mask(tid, &mask);
    if (e >= 0)
        e = tracee_set_mask(tid, ~0ULL);
    if (e < 0)
        return e;
    r = own;
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
    int stepped = e < 0 ? e : step_over(tid);
    if (stepped >= 0)
        stepped = tracee_get_registers(tid, &r);
    call->result = r.words[RAX];
    e = set_registers(tid, &own, mask);
    if (stepped < 0)
        return stepped;
    return e < 0 ? e : rest(tid, deferred_signals);
}

uint32_t inject_code_size(void)
{
    return injected_end - injected_begin;
}

void inject_code(void *destination)
{
    memcpy(destination, injected_begin, inject_code_size());
}

// Runs until the tracee has come to the done signal. Returns 0, or -errno with
// the tracee's whereabouts in outcome->status.
static int run_to_end(int tid, const struct workbench *bench, int *born,
                      uint32_t born_max, struct batch_outcome *outcome)
{
    for (;;) {
        int status;
        int e = tracee_wait(tid, &status);
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
        } else if (event == 0) { // a job-control stop passes by
            if (signal == bench->done_signal) {
                struct task_registers r;
                e = tracee_get_registers(tid, &r);
                if (e < 0)
                    return e;
                if (r.words[RIP] == bench->code + (injected_done - injected_begin))
                    return 0;
            }
            if (signal == SIGSEGV || signal == SIGILL || signal == SIGBUS ||
                signal == SIGTRAP || signal == SIGSYS)
                return -EFAULT;
            outcome->deferred_signals |= 1ULL << (signal - 1);
        }
        e = tracee_continue(tid, 0);
        if (e < 0)
            return e;
    }
}

// What one task is to do: calls, what they point to, and room that they find empty.
struct work {
    int tid;
    struct remote_call *calls; // results come back in the same array
    uint32_t count;
    const void *data;
    uint32_t data_bytes;
    char *space; // what the calls have left there; at first all zero
    uint32_t space_bytes;
    // Where that is in the tracee, and what the task was before.
    uint64_t table, frame, arguments, room;
    struct task_registers own;
    uint64_t mask;
    struct batch_outcome outcome;
};

static int64_t place(int pid, const struct work *work, const void *frame,
                     uint32_t frame_bytes)
{
    struct iovec here[] = {
        {work->calls, work->count * sizeof *work->calls},
        {(void *)frame, frame_bytes},
        {(void *)work->data, work->data_bytes},
        {work->space, work->space_bytes},
    };
    struct iovec there[] = {
        {(void *)work->table, here[0].iov_len},
        {(void *)work->frame, here[1].iov_len},
        {(void *)work->arguments, here[2].iov_len},
        {(void *)work->room, here[3].iov_len},
    };
    ssize_t bytes = 0;
    for (int i = 0; i < 4; i++)
        bytes += here[i].iov_len;
    ssize_t r = process_vm_writev(pid, here, 4, there, 4, 0);
    if (r < 0)
        return -errno;
    return r == bytes ? 0 : -EFAULT;
}

static int64_t fetch(int pid, const struct work *work)
{
    struct iovec here[] = {
        {work->calls, work->count * sizeof *work->calls},
        {work->space, work->space_bytes},
    };
    struct iovec there[] = {
        {(void *)work->table, here[0].iov_len},
        {(void *)work->room, here[1].iov_len},
    };
    ssize_t r = process_vm_readv(pid, here, 2, there, 2, 0);
    if (r < 0)
        return -errno;
    return (size_t)r == here[0].iov_len + here[1].iov_len ? 0 : -EFAULT;
}

// Have a stopped task begin. If this fails it is as it was.
static int64_t begin(int pid, const struct workbench *bench, struct work *work)
{
    char xstate[XSTATE_BYTES_MAX], frame[FRAME_BYTES_MAX];
    int e = tracee_get_registers(work->tid, &work->own);
    if (e >= 0)
        e = tracee_get_mask(work->tid, &work->mask);
    if (e < 0)
        return e;
    int size = tracee_get_xstate(work->tid, xstate, sizeof xstate);
    if (size < 0)
        return size;
    size = make_frame(frame, work->frame, &work->own, xstate, size, work->mask);
    if (size < 0)
        return size;
    int64_t r = place(pid, work, frame, size);
    if (r < 0)
        return r;

    struct task_registers ours = work->own;
    ours.words[RIP] = bench->code;
    ours.words[RBX] = work->table;
    ours.words[R12] = work->count;
    ours.words[R13] = work->frame + 8; // rt_sigreturn looks 8 bytes below
    ours.words[RBP] = bench->done_signal;
    ours.words[RSP] = work->frame;
    ours.words[ORIG_RAX] = -1ULL;
    ours.words[EFLAGS] &= ~(uint64_t)(EFLAGS_TRAP | EFLAGS_DIRECTION);
    r = set_registers(work->tid, &ours, ~(1ULL << (bench->done_signal - 1)));
    if (r >= 0)
        r = tracee_continue(work->tid, 0);
    if (r < 0 && r != -ESRCH)
        set_registers(work->tid, &work->own, work->mask);
    return r;
}

// Wait for the end of what was begun. Registers and mask are the task's own again
// afterwards, also when it failed, unless it has ended.
static int64_t end(int pid, const struct workbench *bench, struct work *work, int *born,
                   uint32_t born_max)
{
    int64_t r = run_to_end(work->tid, bench, born, born_max, &work->outcome);
    if (r >= 0)
        r = fetch(pid, work);
    if (r == -ESRCH)
        return r;
    int e = set_registers(work->tid, &work->own, work->mask);
    return r < 0 ? r : e < 0 ? e : 0;
}

enum { TOGETHER_MAX = 8, ALIGNMENT = 64 };

static uint64_t aligned(uint64_t n)
{
    return (n + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

// The work of one task laid out at `place`, and all pointers to its data and space
// turned to that. Returns the place behind it.
static uint64_t lay_out(const struct workbench *bench, struct work *work, uint64_t place)
{
    work->table = place;
    work->frame = aligned(work->table + work->count * sizeof *work->calls);
    work->arguments = aligned(work->frame + FRAME_BYTES_MAX);
    work->room = aligned(work->arguments + work->data_bytes);
    for (uint32_t row = 0; row < work->count; row++)
        for (int i = 0; i < 6; i++) {
            uint64_t *word = &work->calls[row].arguments[i];
            if (*word - bench->arguments < work->data_bytes)
                *word += work->arguments - bench->arguments;
            else if (*word - bench->space < work->space_bytes)
                *word += work->room - bench->space;
        }
    return aligned(work->room + work->space_bytes);
}

// Have several tasks work at the same time, so that one's way to its stop overlaps the
// next one's. None bears children.
static int64_t work_together(int pid, const struct workbench *bench, struct work *works,
                             uint32_t count, uint64_t *deferred_signals)
{
    int64_t failed = 0;
    uint32_t begun = 0;
    uint64_t place = bench->arguments;
    for (; begun < count && failed >= 0; begun++) {
        place = lay_out(bench, &works[begun], place);
        if (place > bench->space)
            return -E2BIG;
    }
    for (begun = 0; begun < count; begun++) {
        failed = works[begun].count ? begin(pid, bench, &works[begun]) : 0;
        if (failed < 0)
            break;
    }
    for (uint32_t i = 0; i < begun; i++) {
        int64_t r = works[i].count ? end(pid, bench, &works[i], NULL, 0) : 0;
        *deferred_signals |= works[i].outcome.deferred_signals;
        if (r < 0 && failed >= 0)
            failed = r;
    }
    return failed;
}

// Let the stopped tracee `tid` make `count` calls (at most bench->calls_max), whose
// arguments may point to `data`, which is put at bench->arguments; results come back in
// the same array. Every other thread of the process must be stopped too.
// born receives the thread ids of clones, as our pid namespace sees them.
int inject_batch(int pid, int tid, const struct workbench *bench,
                 struct remote_call *calls, uint32_t count, const void *data,
                 uint32_t data_bytes, int *born, uint32_t born_max,
                 struct batch_outcome *outcome)
{
    struct work work = {
        .tid = tid, .calls = calls, .count = count,
        .data = data, .data_bytes = data_bytes,
        .table = bench->table, .frame = bench->frame, .arguments = bench->arguments,
    };
    *outcome = work.outcome;
    if (count == 0)
        return 0;
    if (count > bench->calls_max)
        return -E2BIG;
    int64_t r = begin(pid, bench, &work);
    if (r >= 0)
        r = end(pid, bench, &work, born, born_max);
    *outcome = work.outcome;
    return r;
}

// Have many tasks make the same calls. The answer of each is `stride` bytes: results,
// space, and what ptrace tells of it. `together` of them work at the same time.
int inject_questions(int pid, const int *tids, uint32_t tid_count,
                     const struct workbench *bench, const struct remote_call *calls,
                     uint32_t count, const void *data, uint32_t data_bytes,
                     uint32_t space_bytes, void *answers, uint32_t stride,
                     uint32_t together, uint64_t *deferred_signals)
{
    uint32_t results_bytes = count * sizeof(int64_t);
    if (results_bytes + space_bytes + sizeof(struct task_facts) > stride ||
        together < 1 || together > TOGETHER_MAX)
        return -EINVAL;
    struct remote_call *rows = malloc(together * count * sizeof *rows + 1);
    if (!rows)
        return -ENOMEM;
    int64_t r = 0;
    for (uint32_t first = 0; first < tid_count && r >= 0; first += together) {
        uint32_t n = tid_count - first < together ? tid_count - first : together;
        struct work works[TOGETHER_MAX];
        for (uint32_t i = 0; i < n; i++) {
            char *answer = (char *)answers + (size_t)(first + i) * stride;
            works[i] = (struct work){
                .tid = tids[first + i], .calls = rows + i * count, .count = count,
                .data = data, .data_bytes = data_bytes,
                .space = answer + results_bytes, .space_bytes = space_bytes,
            };
            memcpy(works[i].calls, calls, count * sizeof *rows);
            memset(works[i].space, 0, space_bytes);
        }
        r = work_together(pid, bench, works, n, deferred_signals);
        for (uint32_t i = 0; i < n && r >= 0; i++) {
            char *answer = works[i].space - results_bytes;
            for (uint32_t row = 0; row < count; row++)
                memcpy(answer + row * sizeof(int64_t), &works[i].calls[row].result,
                       sizeof(int64_t));
            r = task_look(pid, works[i].tid,
                          (struct task_facts *)(works[i].space + space_bytes));
        }
    }
    free(rows);
    return r < 0 ? r : (int)tid_count;
}

// Have each task make its own calls; `together` of them at the same time. Results come
// back in the array of calls.
int inject_orders(int pid, const struct order *orders, uint32_t order_count,
                  const struct workbench *bench, struct remote_call *calls,
                  const char *data, uint32_t together, uint64_t *deferred_signals)
{
    if (together < 1 || together > TOGETHER_MAX)
        return -EINVAL;
    for (uint32_t first = 0; first < order_count; first += together) {
        uint32_t n = order_count - first < together ? order_count - first : together;
        struct work works[TOGETHER_MAX];
        for (uint32_t i = 0; i < n; i++) {
            const struct order *order = &orders[first + i];
            works[i] = (struct work){
                .tid = order->tid, .calls = calls + order->first, .count = order->count,
                .data = data + order->data, .data_bytes = order->data_bytes,
            };
        }
        int64_t r = work_together(pid, bench, works, n, deferred_signals);
        if (r < 0)
            return r;
    }
    return order_count;
}
