// A tree of processes: parents, children in their order, groups, sessions, also those
// whose leader has ended, and children that have ended and were not waited for yet.
#include "scenario.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { PLAIN, LEADER_OF_GROUP, LEADER_OF_SESSION, ORPHAN_GROUP, ORPHAN_SESSION, GRANDCHILD, CHILDREN };

struct told {
    int pid, parent, group, session;
};

static int go[2], said[2]; // one pipe for all: each child reads one byte

static struct told now(void)
{
    return (struct told){getpid(), getppid(), getpgid(0), getsid(0)};
}

static void tell(struct told what)
{
    NEED(write(said[1], &what, sizeof what) == sizeof what);
}

// Says who it is, waits, says it again and ends with its status.
__attribute__((noreturn)) static void live(int status)
{
    char byte;
    tell(now());
    NEED(read(go[0], &byte, 1) == 1);
    tell(now());
    _exit(status);
}

static void hear(struct told *all)
{
    for (int i = 0; i < CHILDREN; i++)
        NEED(read(said[0], &all[i], sizeof all[i]) == sizeof all[i]);
}

static int known(const struct told *all, struct told one)
{
    for (int i = 0; i < CHILDREN; i++)
        if (!memcmp(&all[i], &one, sizeof one))
            return 1;
    return 0;
}

static pid_t born(void)
{
    pid_t pid = fork();
    NEED(pid >= 0);
    return pid;
}

// Begins a group or a session, bears one that stays in it, and ends.
static void orphan(int status, int whole_session)
{
    pid_t leader = born();
    if (leader == 0) {
        NEED(whole_session ? setsid() > 0 : setpgid(0, 0) == 0);
        if (born() == 0) {
            // Whoever asks for its parent too early gets the leader.
            while (getppid() == getpgid(0))
                usleep(1000);
            live(status);
        }
        _exit(0);
    }
    NEED(waitpid(leader, NULL, 0) == leader);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    NEED(pipe(go) == 0 && pipe(said) == 0);
    struct told before[CHILDREN], after[CHILDREN], self = now();
    pid_t order[4];

    if ((order[0] = born()) == 0)
        live(10);
    if ((order[1] = born()) == 0) {
        NEED(setpgid(0, 0) == 0);
        live(11);
    }
    pid_t zombies[2];
    if ((zombies[0] = born()) == 0)
        _exit(77);
    if ((zombies[1] = born()) == 0) {
        signal(SIGTERM, SIG_DFL);
        raise(SIGTERM);
        _exit(1);
    }
    for (int i = 0; i < 2; i++) {
        siginfo_t info;
        NEED(waitid(P_PID, zombies[i], &info, WEXITED | WNOWAIT) == 0);
    }
    if ((order[2] = born()) == 0) {
        NEED(setsid() > 0);
        pid_t child = born();
        if (child == 0)
            live(13);
        tell(now());
        int status = 0;
        char byte;
        // It sleeps in here while it is moved.
        NEED(waitpid(child, &status, 0) == child);
        NEED(read(go[0], &byte, 1) == 1);
        tell(now());
        _exit(WEXITSTATUS(status) == 13 ? 12 : 99);
    }
    orphan(14, 0);
    orphan(15, 1);
    hear(before);
    scenario_ready();
    scenario_wait_moved();

    struct told again = now();
    CHECK(again.pid == self.pid && again.group == self.group && again.session == self.session,
          "it is %d in %d and %d", again.pid, again.group, again.session);
    siginfo_t info;
    CHECK(waitid(P_PID, zombies[0], &info, WEXITED) == 0 && info.si_code == CLD_EXITED &&
              info.si_status == 77,
          "the first that had ended: code %d, status %d", info.si_code, info.si_status);
    int status;
    CHECK(waitpid(zombies[1], &status, 0) == zombies[1] && WIFSIGNALED(status) &&
              WTERMSIG(status) == SIGTERM,
          "the second that had ended: %#x", status);
    sigset_t pending;
    sigpending(&pending);
    CHECK(!sigismember(&pending, SIGCHLD), "SIGCHLD is pending");

    for (int i = 0; i < CHILDREN; i++)
        NEED(write(go[1], "x", 1) == 1);
    hear(after);
    for (int i = 0; i < CHILDREN; i++)
        CHECK(known(before, after[i]), "pid %d, child of %d, in group %d and session %d",
              after[i].pid, after[i].parent, after[i].group, after[i].session);
    for (int i = 0; i < 3; i++)
        CHECK(waitpid(order[i], &status, 0) == order[i] && WEXITSTATUS(status) == 10 + i,
              "child %d ended as %#x", i, status);
    int left = 0;
    while (waitpid(-1, &status, 0) > 0)
        left += WEXITSTATUS(status);
    CHECK(left == 14 + 15, "the orphans' statuses make %d", left);
    return scenario_end();
}
