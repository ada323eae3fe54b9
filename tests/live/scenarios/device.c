// The devices that every host has are open as they were.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

static const struct {
    int fd, minor, flags;
    const char *path;
} devices[] = {
    {10, 3, O_RDWR, "/dev/null"},
    {11, 5, O_RDONLY | O_NONBLOCK, "/dev/zero"},
    {12, 7, O_WRONLY | O_APPEND, "/dev/full"},
    {13, 8, O_RDONLY, "/dev/random"},
    {14, 9, O_RDONLY, "/dev/urandom"},
};

enum { COUNT = sizeof devices / sizeof *devices };

static void arrange(void)
{
    for (int i = 0; i < COUNT; i++) {
        int fd = open(devices[i].path, devices[i].flags);
        NEED(fd >= 0 && dup2(fd, devices[i].fd) == devices[i].fd);
        close(fd);
    }
}

static void check(void)
{
    for (int i = 0; i < COUNT; i++) {
        struct stat found;
        int fd = devices[i].fd;
        CHECK(fstat(fd, &found) == 0, "fd %d: %s", fd, strerror(errno));
        CHECK(found.st_rdev == makedev(1, devices[i].minor), "fd %d", fd);
        int flags = fcntl(fd, F_GETFL) & ~0100000;
        CHECK(flags == devices[i].flags, "fd %d: %#o", fd, flags);
    }
    char byte = 1;
    CHECK(read(10, &byte, 1) == 0, "null");
    CHECK(read(11, &byte, 1) == 1 && byte == 0, "zero: %d", byte);
    CHECK(write(12, &byte, 1) < 0 && errno == ENOSPC, "full: %s", strerror(errno));
    CHECK(read(14, &byte, 1) == 1, "urandom");
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
