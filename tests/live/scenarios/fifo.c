// FIFOs keep what lies in them; their ends are where they were, in parent and child.
// The other host must have them, too, in a folder of its own.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/socket.h>
#include <sys/wait.h>

#define FOLDER "/tmp/fifos"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    char path[128], text[16] = "", link[128] = "";
    strcpy(path, FOLDER "/one");
    int both = open(path, O_RDWR), reader = open(path, O_RDONLY | O_NONBLOCK);
    NEED(both >= 0 && reader >= 0 && fcntl(both, F_SETPIPE_SZ, 16384) == 16384);
    NEED(write(both, "left over", 9) == 9);
    strcpy(path, FOLDER "/two");
    int down = open(path, O_RDONLY | O_NONBLOCK), up = open(path, O_WRONLY);
    NEED(down >= 0 && up >= 0 && fcntl(down, F_SETFL, 0) == 0);
    int told[2];
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, told) == 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        close(up);
        NEED(write(told[1], "!", 1) == 1);
        NEED(read(down, text, 2) == 2 && !memcmp(text, "go", 2));
        CHECK(read(down, text, 1) == 0, "the end does not come");
        CHECK(read(reader, text, 4) == 4 && !memcmp(text, "left", 4), "%s", text);
        _exit(scenario_failures != 0);
    }
    close(down);
    NEED(read(told[0], text, 1) == 1);
    scenario_ready();
    scenario_wait_moved();

    snprintf(path, sizeof path, "/proc/self/fd/%d", up);
    NEED(readlink(path, link, sizeof link - 1) > 0);
    CHECK(!strcmp(link, FOLDER "/two"), "it is %s", link);
    CHECK(fcntl(both, F_GETPIPE_SZ) == 16384, "%d", fcntl(both, F_GETPIPE_SZ));
    CHECK(write(up, "go", 2) == 2, "%s", strerror(errno));
    close(up);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the child: %#x", status);
    CHECK(read(reader, text, 16) == 5 && !memcmp(text, " over", 5), "%s", text);
    CHECK(read(reader, text, 16) < 0 && errno == EAGAIN, "%s", strerror(errno));
    CHECK(write(both, "x", 1) == 1 && read(reader, text, 1) == 1, "not connected");
    return scenario_end();
}
