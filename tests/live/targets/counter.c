// Appends 1, 2, 3, … to a file, a number a line, a thousand times a second: whoever
// reads it sees whether two of us ran, or one of us twice.
//
// counter FILE

#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec pause = {0, 1000000};
    char line[32];

    if (argc != 2)
        return 2;
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(1, "ready\n", 6) != 6)
        return 1;
    close(1);
    for (unsigned long number = 1;; number++) {
        int length = snprintf(line, sizeof(line), "%lu\n", number);
        if (write(fd, line, length) != length)
            return 1;
        nanosleep(&pause, NULL);
    }
}
