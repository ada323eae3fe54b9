// Locks on files are held: another process cannot have them, and gets them when they
// are given up.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/file.h>
#include <sys/wait.h>

enum { RANGES = 10, WHOLE = 11, DESCRIPTION = 12, SHARED = 13 };

static void open_at(const char *name, int number)
{
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    NEED(fd >= 0 && dup2(fd, number) == number);
    close(fd);
}

static int set(int fd, int command, int type, off_t start, off_t length)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &lock);
}

static void arrange(void)
{
    open_at("ranges", RANGES);
    open_at("whole", WHOLE);
    open_at("description", DESCRIPTION);
    open_at("shared", SHARED);
    NEED(set(RANGES, F_SETLK, F_WRLCK, 100, 100) == 0);
    NEED(set(RANGES, F_SETLK, F_RDLCK, 300, 0) == 0);
    NEED(flock(WHOLE, LOCK_EX) == 0);
    NEED(set(DESCRIPTION, F_OFD_SETLK, F_WRLCK, 0, 10) == 0);
    NEED(flock(SHARED, LOCK_SH) == 0);
}

// Whether another process can lock this part of the file, or with length -1 the
// whole, with flock(2).
static int another_can(const char *name, int type, off_t start, off_t length)
{
    pid_t child = fork();
    if (child == 0) {
        int fd = open(name, O_RDWR);
        int got = length < 0 ? flock(fd, type | LOCK_NB)
                             : set(fd, F_SETLK, type, start, length);
        _exit(got == 0);
    }
    int status;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

static void check(void)
{
    CHECK(another_can("ranges", F_WRLCK, 0, 100), "before it");
    CHECK(!another_can("ranges", F_RDLCK, 100, 1), "its first byte");
    CHECK(!another_can("ranges", F_RDLCK, 199, 1), "its last byte");
    CHECK(another_can("ranges", F_WRLCK, 200, 100), "behind it");
    CHECK(another_can("ranges", F_RDLCK, 300, 1), "shared");
    CHECK(!another_can("ranges", F_WRLCK, 1 << 30, 1), "shared, far behind");
    CHECK(!another_can("whole", LOCK_SH, 0, -1), "whole");
    CHECK(!another_can("description", F_RDLCK, 9, 1), "of the description");
    CHECK(another_can("description", F_WRLCK, 10, 1), "behind it");
    CHECK(another_can("shared", LOCK_SH, 0, -1), "shared too");
    CHECK(!another_can("shared", LOCK_EX, 0, -1), "alone");
    CHECK(set(RANGES, F_SETLK, F_UNLCK, 100, 100) == 0, "%s", strerror(errno));
    CHECK(another_can("ranges", F_WRLCK, 100, 100), "given up");
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    if (!scenario_bare)
        arrange();
    scenario_ready();
    scenario_wait_moved();
    check();
    return scenario_end();
}
