// Appends 1, 2, 3, … to a file, a thousand times a second, each with the name of the
// host on which it was counted: whoever reads it sees whether two of us ran, or one of
// us twice. Holds a lock of each sort meanwhile. At SIGUSR1 it has a child, which does
// nothing; at SIGUSR2 it executes itself, and counts on.
//
// counter FILE [NUMBER]

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static int open_beside(const char *file, const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s.%s", file, name);
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static int lock_all(const char *file)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(open_beside(file, "process"), F_SETLK, &all) == 0 &&
           fcntl(open_beside(file, "description"), F_OFD_SETLK, &all) == 0 &&
           flock(open_beside(file, "whole"), LOCK_EX | LOCK_NB) == 0;
}

static volatile sig_atomic_t wanted;

static void want(int signal_number)
{
    wanted = signal_number;
}

static void do_what_is_wanted(char **argv, unsigned long number)
{
    int what = wanted;
    char next[32];

    wanted = 0;
    if (what == SIGUSR1 && fork() == 0)
        for (;;)
            pause();
    if (what == SIGUSR2) {
        snprintf(next, sizeof(next), "%lu", number);
        execl(argv[0], argv[0], argv[1], next, NULL);
    }
}

int main(int argc, char **argv)
{
    struct timespec pause = {0, 1000000};
    struct utsname host;
    char line[128];

    if (argc < 2 || !lock_all(argv[1]))
        return 2;
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return 1;
    signal(SIGUSR1, want);
    signal(SIGUSR2, want);
    if (argc == 2) {
        if (write(1, "ready\n", 6) != 6)
            return 1;
        close(1);
    }
    for (unsigned long number = argc == 2 ? 1 : atol(argv[2]);; number++) {
        do_what_is_wanted(argv, number);
        uname(&host);
        int length = snprintf(line, sizeof(line), "%s %lu\n", host.nodename, number);
        // Its offset stays what it was: where it is does not tell how far it has come.
        if (pwrite(fd, line, length, 0) != length)
            return 1;
        nanosleep(&pause, NULL);
    }
}
