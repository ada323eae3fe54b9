// A process of the right ids, about to execute the right program.
//
// Ids are chosen with clone3(2) set_tid. A process whose session or group leader
// is not itself gets one for the moment: a leader is born with the wanted number,
// makes the session, bears the next in line and ends; the number lives on as the
// session's (credentials(7)). The child then becomes the owner, waits for the one
// byte that says that it is being traced, and executes. It is stopped at the exec
// (PTRACE_EVENT_EXEC) before its first instruction.
//
// Between clone and exec only async-signal-safe calls are made: the caller is a
// Python process that may have had threads.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api.h"

struct pipes {
    int go[2];     // from us: execute
    int error[2];  // to us: errno of a failed exec
    int report[2]; // to us: {step, -errno or pid} of the births
};

struct report {
    int32_t step, value;
};

static int spawn(int wanted, int cgroup)
{
    pid_t ids[1] = {wanted};
    struct clone_args args = {
        .exit_signal = SIGCHLD,
    };
    // A pointer without a size is EINVAL (kernel/fork.c).
    if (wanted > 0) {
        args.set_tid = (uint64_t)(uintptr_t)ids;
        args.set_tid_size = 1;
    }
    if (cgroup >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup;
    }
    long r = syscall(SYS_clone3, &args, sizeof args);
    return r < 0 ? -errno : r;
}

static void say(int to, int step, int value)
{
    struct report r = {step, value};
    // A broken pipe means that the caller is gone; then we go too.
    if (write(to, &r, sizeof r) != sizeof r)
        _exit(1);
}

static int become_owner(const struct skeleton_plan *plan)
{
    // The raw calls: glibc's would look for other threads of the parent.
    if (syscall(SYS_setgroups, (long)plan->group_count, plan->groups) < 0 ||
        syscall(SYS_setresgid, plan->gid[0], plan->gid[1], plan->gid[2]) < 0 ||
        syscall(SYS_setresuid, plan->uid[0], plan->uid[1], plan->uid[2]) < 0)
        return -errno;
    return 0;
}

static void close_all_but(int a, int b)
{
    int low = a < b ? a : b, high = a < b ? b : a;
    if (low > 0)
        syscall(SYS_close_range, 0U, (unsigned)low - 1, 0U);
    if (high > low + 1)
        syscall(SYS_close_range, (unsigned)low + 1, (unsigned)high - 1, 0U);
    syscall(SYS_close_range, (unsigned)high + 1, ~0U, 0U);
}

static void default_signals(void)
{
    // exec keeps ignored signals ignored, and Python ignores SIGPIPE.
    for (int s = 1; s <= 64; s++) {
        uint64_t action[4] = {0};
        syscall(SYS_rt_sigaction, s, action, NULL, 8L);
    }
    uint64_t none = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, 8L);
}

__attribute__((noreturn)) static void live(const struct skeleton_plan *plan,
                                           const struct pipes *p)
{
    close_all_but(p->go[0], p->error[1]);
    default_signals();
    int e = become_owner(plan);
    char byte;
    if (read(p->go[0], &byte, 1) != 1)
        _exit(1);
    if (e == 0) {
        syscall(SYS_close, p->go[0]);
        char *const argv[] = {"skeleton", NULL}, *const envp[] = {NULL};
        execve(plan->executable, argv, envp);
        e = -errno;
    }
    int32_t number = -e;
    if (write(p->error[1], &number, sizeof number) < 0)
        _exit(2);
    _exit(1);
}

// The process itself, or the next leader on the way to it. Each bears the next
// and ends; the last one lives.
__attribute__((noreturn)) static void descend(const struct skeleton_plan *plan,
                                              const struct pipes *p, int step)
{
    int me = step == STEP_SESSION ? plan->sid
             : step == STEP_GROUP ? plan->pgid
                                  : plan->pid;
    if (me == plan->sid && setsid() < 0) {
        say(p->report[1], step, -errno);
        _exit(1);
    }
    if (me == plan->pgid && me != plan->sid && setpgid(0, 0) < 0) {
        say(p->report[1], step, -errno);
        _exit(1);
    }
    if (step == STEP_PROCESS) {
        say(p->report[1], STEP_NONE, 0);
        live(plan, p);
    }
    int next = step == STEP_SESSION && plan->pgid != plan->sid &&
                       plan->pgid != plan->pid
                   ? STEP_GROUP
                   : STEP_PROCESS;
    int child = spawn(next == STEP_GROUP ? plan->pgid : plan->pid, plan->cgroup);
    if (child < 0) {
        say(p->report[1], next, child);
        _exit(1);
    }
    if (child == 0)
        descend(plan, p, next);
    // Session and group are inherited (setsid(2), setpgid(2)): the next one needs
    // nothing more from this one.
    _exit(0);
}

static int first_step(const struct skeleton_plan *plan)
{
    if (plan->sid != plan->pid)
        return STEP_SESSION;
    return STEP_PROCESS;
}

static int first_id(const struct skeleton_plan *plan)
{
    return first_step(plan) == STEP_SESSION ? plan->sid : plan->pid;
}

// The init of a pid namespace made for one migrated tree: it bears its root, reaps
// what is orphaned to it, and ends when all have ended, as the root did.
__attribute__((noreturn)) static void be_init(const struct skeleton_plan *plan,
                                              const struct pipes *p)
{
    prctl(PR_SET_NAME, "migrate-init");
    setsid();
    int child = spawn(first_id(plan), plan->cgroup);
    if (child < 0) {
        say(p->report[1], first_step(plan), child);
        _exit(1);
    }
    if (child == 0)
        descend(plan, p, first_step(plan));
    syscall(SYS_close_range, 0U, ~0U, 0U);
    default_signals();
    for (int answer = 0;;) {
        int status;
        pid_t gone = waitpid(-1, &status, __WALL);
        if (gone < 0 && errno == ECHILD)
            _exit(answer);
        if (gone != plan->pid)
            continue;
        // An init does not die of its own signals; 128+n is the shell's way.
        answer = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
}

static int open_pipes(struct pipes *p)
{
    memset(p, -1, sizeof *p);
    if (pipe2(p->go, O_CLOEXEC) < 0 || pipe2(p->error, O_CLOEXEC) < 0 ||
        pipe2(p->report, O_CLOEXEC) < 0)
        return -errno;
    return 0;
}

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_pipes(struct pipes *p)
{
    for (int i = 0; i < 2; i++) {
        close_one(&p->go[i]);
        close_one(&p->error[i]);
        close_one(&p->report[i]);
    }
}

// Start the skeleton. On success *birth owns two descriptors and the caller is
// the (adoptive) parent; birth->pid is 0 when only birth->init is known (the
// process is its child in another pid namespace). On failure nothing is left but
// zombies for the caller to reap.
int skeleton_spawn(const struct skeleton_plan *plan, struct skeleton_birth *birth)
{
    *birth = (struct skeleton_birth){.go = -1, .error = -1};
    struct pipes p;
    int e = open_pipes(&p);
    if (e < 0) {
        birth->step = STEP_PIPE;
        close_pipes(&p);
        return e;
    }
    // Leaders that end leave the process to us rather than to the host's init.
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int child;
    if (plan->new_pid_namespace) {
        struct clone_args args = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD};
        child = syscall(SYS_clone3, &args, sizeof args);
        birth->step = STEP_NAMESPACE;
        if (child == 0)
            be_init(plan, &p);
        if (child < 0)
            child = -errno;
    } else {
        child = spawn(first_id(plan), plan->cgroup);
        birth->step = first_step(plan);
        if (child == 0)
            descend(plan, &p, first_step(plan));
    }
    if (child < 0) {
        close_pipes(&p);
        return child;
    }
    close_one(&p.report[1]);
    struct report r = {STEP_INIT, -EPIPE};
    ssize_t n;
    do {
        n = read(p.report[0], &r, sizeof r);
    } while (n < 0 && errno == EINTR);
    if (n != sizeof r || r.step != STEP_NONE) {
        birth->step = r.step;
        close_pipes(&p);
        return r.value < 0 ? r.value : -ECHILD;
    }
    birth->step = STEP_NONE;
    birth->go = p.go[1];
    birth->error = p.error[0];
    p.go[1] = p.error[0] = -1;
    close_pipes(&p);
    if (plan->new_pid_namespace) {
        birth->init = child;
        birth->pid = 0;
    } else {
        birth->init = 0;
        birth->pid = plan->pid > 0 ? plan->pid : child;
    }
    return 0;
}
