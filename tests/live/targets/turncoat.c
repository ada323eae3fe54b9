// A process that does what it was told at its start, when SIGUSR1 comes:
//
//   turncoat exec PROGRAM | fork | socket | exit
//
// Until then it holds 70 MiB and waits. It closes stdout when it is ready.

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BYTES = 70 << 20 };

int main(int count, char **words) {
    if (count < 2)
        return 2;
    char *memory = malloc(BYTES);
    if (!memory)
        return 1;
    memset(memory, 'm', BYTES);
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigprocmask(SIG_BLOCK, &told, 0);
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, 1);
    close(nothing);

    int number;
    sigwait(&told, &number);
    if (!strcmp(words[1], "exec") && count > 2)
        execl(words[2], words[2], "1000", (char *)0);
    else if (!strcmp(words[1], "socket"))
        socket(AF_INET, SOCK_DGRAM, 0);
    else if (!strcmp(words[1], "exit"))
        return 0;
    else if (!strcmp(words[1], "fork"))
        fork();
    for (;;)
        pause();
}
