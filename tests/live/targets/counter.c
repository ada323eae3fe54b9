// Appends 1, 2, 3, … to a file, a thousand times a second, each with the name of the
// host on which it was counted: whoever reads it sees whether two of us ran, or one of
// us twice. Holds a lock of each sort meanwhile.
//
// counter FILE

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
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

int main(int argc, char **argv)
{
    struct timespec pause = {0, 1000000};
    struct utsname host;
    char line[128];

    if (argc != 2 || !lock_all(argv[1]))
        return 2;
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(1, "ready\n", 6) != 6)
        return 1;
    close(1);
    for (unsigned long number = 1;; number++) {
        uname(&host);
        int length = snprintf(line, sizeof(line), "%s %lu\n", host.nodename, number);
        // Its offset stays what it was: where it is does not tell how far it has come.
        if (pwrite(fd, line, length, 0) != length)
            return 1;
        nanosleep(&pause, NULL);
    }
}
