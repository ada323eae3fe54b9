// A process that does to its memory what it is told, line by line:
//
//   s NUMBER A B C D E F     a system call; answers with its result or -errno
//   w ADDRESS COUNT STRIDE VALUE   writes a byte COUNT times; answers 0
//   r ADDRESS                reads a byte; answers with it
//
// Numbers are decimal, or hexadecimal behind 0x. First it opens a userfaultfd for the
// tracker and says its number; it is to be told to close it.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { UFFD_USER_MODE_ONLY = 1 };

static char *rest;

static long next(void) {
    return (long)strtoull(rest, &rest, 0);
}

static long obey(char what) {
    if (what == 'w') {
        volatile uint8_t *at = (uint8_t *)next();
        long count = next(), stride = next(), value = next();
        for (long i = 0; i < count; i++)
            at[i * stride] = (uint8_t)value;
        return 0;
    }
    if (what == 'r')
        return *(volatile uint8_t *)next();
    long a[7];
    for (int i = 0; i < 7; i++)
        a[i] = next();
    long result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    return result < 0 ? -errno : result;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dprintf(1, "%ld\n",
            syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    char line[512];
    for (;;) {
        size_t length = 0;
        while (length < sizeof line - 1 && read(0, line + length, 1) == 1)
            if (line[length++] == '\n')
                break;
        if (length == 0)
            return 0;
        line[length] = 0;
        rest = line + 1;
        dprintf(1, "%ld\n", obey(line[0]));
    }
}
