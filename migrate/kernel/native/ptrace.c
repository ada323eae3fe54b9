// ptrace(2) with -errno for an answer. Each function must be called from the
// thread that seized the tracee; Python keeps one thread for that.

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api.h"

// glibc's <sys/ptrace.h> cannot be included beside <linux/ptrace.h>, which alone
// has the rseq request; the raw call is the same for both.
static long trace(long request, int tid, void *address, void *data)
{
    long r = syscall(SYS_ptrace, request, (long)tid, address, data);
    return r < 0 ? -errno : r;
}

int64_t raw_syscall(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                    uint64_t e, uint64_t f)
{
    long r = syscall(number, a, b, c, d, e, f);
    return r == -1 ? -errno : r;
}

int tracee_seize(int tid, uint64_t options)
{
    return trace(PTRACE_SEIZE, tid, NULL, (void *)options);
}

int tracee_interrupt(int tid)
{
    return trace(PTRACE_INTERRUPT, tid, NULL, NULL);
}

int tracee_continue(int tid, int signal)
{
    return trace(PTRACE_CONT, tid, NULL, (void *)(long)signal);
}

int tracee_to_syscall(int tid)
{
    return trace(PTRACE_SYSCALL, tid, NULL, NULL);
}

int tracee_options(int tid, uint64_t options)
{
    return trace(PTRACE_SETOPTIONS, tid, NULL, (void *)options);
}

int tracee_detach(int tid, int signal)
{
    return trace(PTRACE_DETACH, tid, NULL, (void *)(long)signal);
}

int tracee_wait(int tid, int *status)
{
    pid_t r;
    do {
        r = waitpid(tid, status, __WALL);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int tracee_event_message(int tid, uint64_t *message)
{
    return trace(PTRACE_GETEVENTMSG, tid, NULL, message);
}

// Interrupt all, then collect every stop: one thread's wake-up overlaps the next
// one's interrupt. A task that ended meanwhile leaves its wait status; one that
// is gone altogether leaves 0.
int tracees_stop(const int *tids, int count, int *statuses)
{
    for (int i = 0; i < count; i++) {
        int r = tracee_interrupt(tids[i]);
        if (r < 0 && r != -ESRCH)
            return r;
    }
    int stopped = 0;
    for (int i = 0; i < count; i++) {
        statuses[i] = 0;
        int r = tracee_wait(tids[i], &statuses[i]);
        if (r < 0 && r != -ECHILD)
            return r;
        if (r == 0 && WIFSTOPPED(statuses[i]))
            stopped++;
    }
    return stopped;
}

static int get_set(int tid, int set, long note, void *data, uint32_t size)
{
    struct iovec area = {data, size};
    long r = trace(set ? PTRACE_SETREGSET : PTRACE_GETREGSET, tid, (void *)note, &area);
    return r < 0 ? r : (int)area.iov_len;
}

int tracee_get_registers(int tid, struct task_registers *registers)
{
    return get_set(tid, 0, NT_PRSTATUS, registers, sizeof *registers);
}

int tracee_set_registers(int tid, const struct task_registers *registers)
{
    return get_set(tid, 1, NT_PRSTATUS, (void *)registers, sizeof *registers);
}

int tracee_get_xstate(int tid, void *buffer, uint32_t size)
{
    return get_set(tid, 0, NT_X86_XSTATE, buffer, size);
}

int tracee_set_xstate(int tid, const void *buffer, uint32_t size)
{
    return get_set(tid, 1, NT_X86_XSTATE, (void *)buffer, size);
}

int tracee_get_mask(int tid, uint64_t *mask)
{
    return trace(PTRACE_GETSIGMASK, tid, (void *)sizeof *mask, mask);
}

int tracee_set_mask(int tid, uint64_t mask)
{
    return trace(PTRACE_SETSIGMASK, tid, (void *)sizeof mask, &mask);
}

int tracee_get_rseq(int tid, struct rseq_configuration *configuration)
{
    return trace(PTRACE_GET_RSEQ_CONFIGURATION, tid, (void *)sizeof *configuration,
                 configuration);
}

int tracee_peek_signals(int tid, uint64_t offset, int shared, int count, void *infos)
{
    struct ptrace_peeksiginfo_args args = {
        .off = offset,
        .flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0,
        .nr = count,
    };
    return trace(PTRACE_PEEKSIGINFO, tid, &args, infos);
}

// PR_SET_SYSCALL_USER_DISPATCH: 1 or 0.
static int dispatches(int tid)
{
    struct {
        uint64_t mode, selector, offset, length;
    } config;
    enum { GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211 }; // linux/ptrace.h, Linux 6.4
    long r = trace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, (void *)sizeof config, &config);
    if (r == -EIO || r == -EINVAL)
        return 0; // a kernel that cannot tell
    return r < 0 ? r : config.mode != 0;
}

// ioperm(2), iopl(2): 1 or 0.
static int has_ports(int tid)
{
    enum { NOTE_386_IOPERM = 0x201, BITMAP_BYTES = 8192 };
    char bitmap[BITMAP_BYTES];
    int r = get_set(tid, 0, NOTE_386_IOPERM, bitmap, sizeof bitmap);
    if (r == -ENXIO || r == -EINVAL || r == -ENODEV)
        return 0; // it has none, or the kernel has no such thing
    return r < 0 ? r : r > 0;
}

int task_look(int pid, int tid, struct task_facts *facts)
{
    enum { SEQUENCE_OFFSET = 8, KCMP_FS_ = 3 }; // linux/rseq.h, linux/kcmp.h
    *facts = (struct task_facts){0};
    int r = tracee_get_rseq(tid, &facts->rseq);
    if (r < 0)
        return r;
    facts->rseq.padding = 0;
    if (facts->rseq.pointer) {
        struct iovec here = {&facts->sequence, sizeof facts->sequence};
        struct iovec there = {(void *)(facts->rseq.pointer + SEQUENCE_OFFSET),
                              sizeof facts->sequence};
        if (process_vm_readv(pid, &here, 1, &there, 1, 0) != sizeof facts->sequence)
            return -EFAULT;
    }
    r = dispatches(tid);
    if (r < 0)
        return r;
    facts->dispatches = r;
    r = has_ports(tid);
    if (r < 0)
        return r;
    facts->ports = r;
    facts->shares_fs = tid == pid || syscall(SYS_kcmp, pid, tid, KCMP_FS_, 0, 0) == 0;
    return 0;
}

int tasks_read(const int *tids, int count, struct task_registers *registers,
               uint64_t *masks, void *xstates, uint32_t xstate_stride,
               uint32_t *sizes)
{
    for (int i = 0; i < count; i++) {
        int r = tracee_get_registers(tids[i], &registers[i]);
        if (r >= 0)
            r = tracee_get_mask(tids[i], &masks[i]);
        if (r >= 0)
            r = tracee_get_xstate(tids[i], (char *)xstates + (size_t)i * xstate_stride,
                                  xstate_stride);
        if (r < 0)
            return r;
        sizes[i] = r;
    }
    return count;
}

int tasks_registers(const int *tids, int count, struct task_registers *registers)
{
    for (int i = 0; i < count; i++) {
        int r = tracee_get_registers(tids[i], &registers[i]);
        if (r < 0)
            return r;
    }
    return count;
}

int tasks_write(const int *tids, int count, const struct task_registers *registers,
                const uint64_t *masks, const void *xstates, const uint32_t *sizes)
{
    const char *xstate = xstates;
    for (int i = 0; i < count; xstate += sizes[i], i++) {
        int r = tracee_set_xstate(tids[i], xstate, sizes[i]);
        if (r >= 0)
            r = tracee_set_registers(tids[i], &registers[i]);
        if (r >= 0)
            r = tracee_set_mask(tids[i], masks[i]);
        if (r < 0)
            return r;
    }
    return count;
}

static int expect_stop(int tid, int event, int *status)
{
    int stopped;
    int r = tracee_wait(tid, &stopped);
    if (r < 0)
        return r;
    if ((stopped & 0xff) == 0x7f && stopped >> 16 == event)
        return 0;
    *status = stopped;
    return -EPROTO;
}

int tasks_break_off(const int *tids, int count, struct task_registers *registers,
                    int *statuses)
{
    uint64_t *masks = malloc(count * sizeof *masks + 1);
    int r = masks ? 0 : -ENOMEM;
    // All together: one thread's way to its stop overlaps the next one's.
    for (int i = 0; i < count && r >= 0; i++) {
        statuses[i] = 0;
        r = tracee_get_mask(tids[i], &masks[i]);
        if (r >= 0)
            r = tracee_set_mask(tids[i], ~0ULL);
        if (r >= 0)
            r = tracee_set_registers(tids[i], &registers[i]);
        if (r >= 0)
            r = tracee_to_syscall(tids[i]);
    }
    for (int i = 0; i < count && r >= 0; i++) {
        r = expect_stop(tids[i], 0, &statuses[i]);
        // A stop asked for in the entry stop is pending when the call begins: it arms
        // its timer, sees that it has to leave, and leaves as a broken-off call does.
        if (r >= 0)
            r = tracee_interrupt(tids[i]);
        if (r >= 0)
            r = tracee_continue(tids[i], 0);
    }
    for (int i = 0; i < count && r >= 0; i++) {
        r = expect_stop(tids[i], PTRACE_EVENT_STOP, &statuses[i]);
        if (r >= 0)
            r = tracee_set_mask(tids[i], masks[i]);
        if (r >= 0)
            r = tracee_get_registers(tids[i], &registers[i]);
    }
    free(masks);
    return r < 0 ? r : count;
}
