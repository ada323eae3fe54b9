// Pipes keep their contents, sizes and packets; who has lost the other side still
// gets the end of the file, or EPIPE.
#define _GNU_SOURCE
#include "scenario.h"

#include <signal.h>

enum {
    STREAM = 10,  // and 11: a stream
    PACKETS = 12, // and 13: packets, of 8 pages
    ENDED = 14,   // its writers are gone
    BROKEN = 15,  // its readers are gone
    FULL = 16,    // and 17: full
    BOTH = 18,    // another description of STREAM, for both directions
    EMPTY = 20,   // and 21: nothing in it, its writer is the lower number
};

static void place(int fd, int number)
{
    NEED(dup2(fd, number) == number);
    close(fd);
}

static void pipe_at(int reader, int writer, int flags)
{
    int ends[2];
    NEED(pipe2(ends, flags) == 0);
    place(ends[0], reader);
    place(ends[1], writer);
}

static char pattern(int i)
{
    return i * 7 + i / 251;
}

static void arrange(void)
{
    pipe_at(STREAM, STREAM + 1, 0);
    NEED(write(STREAM + 1, "hel", 3) == 3 && write(STREAM + 1, "lo", 2) == 2);
    NEED(open("/proc/self/fd/10", O_RDWR) == 3);
    place(3, BOTH);
    pipe_at(PACKETS, PACKETS + 1, O_DIRECT);
    NEED(fcntl(PACKETS, F_SETPIPE_SZ, 8 * 4096) == 8 * 4096);
    NEED(write(PACKETS + 1, "one", 3) == 3 && write(PACKETS + 1, "three", 5) == 5);
    pipe_at(ENDED, 30, 0);
    NEED(write(30, "rest", 4) == 4);
    close(30);
    pipe_at(30, BROKEN, 0);
    close(30);
    pipe_at(FULL, FULL + 1, O_NONBLOCK);
    char byte;
    for (int i = 0; byte = pattern(i), write(FULL + 1, &byte, 1) == 1; i++)
        ;
    NEED(errno == EAGAIN);
    pipe_at(EMPTY + 1, EMPTY, O_NONBLOCK);
}

static void check(void)
{
    char text[32] = "";
    signal(SIGPIPE, SIG_IGN);
    CHECK(read(STREAM, text, 4) == 4 && !memcmp(text, "hell", 4), "%s", text);
    CHECK(write(BOTH, "!", 1) == 1, "%s", strerror(errno));
    CHECK(read(BOTH, text, 8) == 2 && !memcmp(text, "o!", 2), "%s", text);

    CHECK(fcntl(PACKETS, F_GETPIPE_SZ) == 8 * 4096, "%d", fcntl(PACKETS, F_GETPIPE_SZ));
    CHECK(fcntl(PACKETS + 1, F_GETFL) & O_DIRECT, "no packets any more");
    CHECK(read(PACKETS, text, 32) == 3 && !memcmp(text, "one", 3), "%s", text);
    CHECK(read(PACKETS, text, 32) == 5 && !memcmp(text, "three", 5), "%s", text);

    CHECK(read(ENDED, text, 32) == 4 && !memcmp(text, "rest", 4), "%s", text);
    CHECK(read(ENDED, text, 32) == 0, "the end does not come");
    CHECK(write(BROKEN, "x", 1) < 0 && errno == EPIPE, "%s", strerror(errno));

    CHECK(write(FULL + 1, "x", 1) < 0 && errno == EAGAIN, "%s", strerror(errno));
    int i = 0;
    for (char byte; read(FULL, &byte, 1) == 1; i++)
        if (byte != pattern(i)) {
            CHECK(byte == pattern(i), "byte %d", i);
            break;
        }
    CHECK(i == fcntl(FULL, F_GETPIPE_SZ), "%d", i);
    CHECK(read(EMPTY + 1, text, 1) < 0 && errno == EAGAIN, "%s", strerror(errno));
    CHECK(write(EMPTY, "y", 1) == 1 && read(EMPTY + 1, text, 1) == 1, "not connected");
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
