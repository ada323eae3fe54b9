// Socket pairs keep what lies in them with its packets, what was shut down, and their
// options.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/socket.h>
#include <sys/time.h>

enum {
    STREAM = 10,   // and 11: a stream, something in both
    PACKETS = 12,  // and 13: SOCK_SEQPACKET
    DATAGRAMS = 14, // and 15
    ENDED = 16,    // its peer has closed; there is something left to read
    RESET = 17,    // its peer has closed with something unread
    HALF = 18,     // and 19: 18 sends no more, 19 has not read all
    FULL = 20,     // and 21: 20 has written all that goes
    FRESH = 22,    // never connected
    ALONE = 23,    // a datagram socket whose peer has closed
    TWICE = 24,    // and 25: the same as STREAM
};

static void place(int fd, int number)
{
    NEED(fd == number || (dup2(fd, number) == number && close(fd) == 0));
}

static void pair_at(int one, int other, int type)
{
    int ends[2];
    NEED(socketpair(AF_UNIX, type, 0, ends) == 0);
    place(ends[0], one);
    place(ends[1], other);
}

static void put(int fd, const char *text)
{
    NEED(send(fd, text, strlen(text), 0) == (long)strlen(text));
}

static char pattern(unsigned i)
{
    return i * 7 + i / 251;
}

static int number(int fd, int option)
{
    int value = -1;
    socklen_t size = sizeof value;
    NEED(getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0);
    return value;
}

static void set(int fd, int option, int value)
{
    NEED(setsockopt(fd, SOL_SOCKET, option, &value, sizeof value) == 0);
}

static void arrange(void)
{
    pair_at(STREAM, STREAM + 1, SOCK_STREAM);
    put(STREAM, "to 11, ");
    put(STREAM, "in pieces");
    put(STREAM + 1, "to 10");
    set(STREAM, SO_SNDBUF, 40000);
    set(STREAM + 1, SO_RCVBUF, 50000);
    set(STREAM, SO_RCVLOWAT, 3);
    struct timeval timeout = {7, 500000};
    NEED(setsockopt(STREAM, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) == 0);
    NEED(dup2(STREAM, TWICE) == TWICE && dup2(STREAM + 1, TWICE + 1) == TWICE + 1);

    pair_at(PACKETS, PACKETS + 1, SOCK_SEQPACKET | SOCK_NONBLOCK);
    put(PACKETS, "one");
    put(PACKETS, "three");
    NEED(fcntl(PACKETS + 1, F_SETFL, 0) == 0);

    pair_at(DATAGRAMS, DATAGRAMS + 1, SOCK_DGRAM);
    put(DATAGRAMS + 1, "a datagram");
    put(DATAGRAMS + 1, "another");
    set(DATAGRAMS + 1, SO_PASSCRED, 1);
    set(DATAGRAMS, SO_PEEK_OFF, 4);

    pair_at(ENDED, 40, SOCK_STREAM);
    put(40, "rest");
    close(40);
    pair_at(RESET, 40, SOCK_STREAM);
    put(RESET, "unread");
    close(40);
    pair_at(HALF, HALF + 1, SOCK_STREAM);
    put(HALF, "the last");
    NEED(shutdown(HALF, SHUT_WR) == 0);
    pair_at(FULL, FULL + 1, SOCK_STREAM | SOCK_NONBLOCK);
    char piece[1000];
    for (unsigned i = 0; i < sizeof piece; i++)
        piece[i] = pattern(i);
    while (send(FULL, piece, sizeof piece, 0) == sizeof piece)
        ;
    place(socket(AF_UNIX, SOCK_SEQPACKET, 0), FRESH);
    pair_at(ALONE, 40, SOCK_DGRAM);
    put(40, "farewell");
    close(40);
}

static int takes(int fd, const char *text)
{
    char got[64] = "";
    long size = recv(fd, got, sizeof got, MSG_DONTWAIT);
    if (size == (long)strlen(text) && !memcmp(got, text, size))
        return 1;
    scenario_say("fd %d gave %ld, %s (%s)", fd, size, got, strerror(errno));
    return 0;
}

static void check(void)
{
    char text[64];
    CHECK(takes(STREAM + 1, "to 11, in pieces"), "11");
    CHECK(takes(TWICE, "to 10"), "24 is 10");
    CHECK(number(STREAM, SO_SNDBUF) == 80000, "%d", number(STREAM, SO_SNDBUF));
    CHECK(number(STREAM + 1, SO_RCVBUF) == 100000, "%d", number(STREAM + 1, SO_RCVBUF));
    CHECK(number(STREAM + 1, SO_SNDBUF) != 80000, "both sides are set");
    CHECK(number(STREAM, SO_RCVLOWAT) == 3, "%d", number(STREAM, SO_RCVLOWAT));
    struct timeval timeout = {0};
    socklen_t size = sizeof timeout;
    CHECK(getsockopt(STREAM, SOL_SOCKET, SO_RCVTIMEO, &timeout, &size) == 0 &&
              timeout.tv_sec == 7 && timeout.tv_usec == 500000,
          "%ld.%06ld", timeout.tv_sec, timeout.tv_usec);
    CHECK(write(TWICE, "!", 1) == 1 && takes(TWICE + 1, "!"), "not connected");
    struct ucred maker = {0};
    size = sizeof maker;
    CHECK(getsockopt(STREAM, SOL_SOCKET, SO_PEERCRED, &maker, &size) == 0 &&
              maker.pid == getpid() && maker.uid == getuid(),
          "pid %d has made it", maker.pid);

    CHECK(takes(PACKETS + 1, "one") && takes(PACKETS + 1, "three"), "packets");
    CHECK(fcntl(PACKETS, F_GETFL) & O_NONBLOCK, "12 blocks");
    CHECK(!(fcntl(PACKETS + 1, F_GETFL) & O_NONBLOCK), "13 does not block");
    CHECK(recv(PACKETS + 1, text, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "more came");

    CHECK(number(DATAGRAMS, SO_PEEK_OFF) == 4, "%d", number(DATAGRAMS, SO_PEEK_OFF));
    CHECK(takes(DATAGRAMS, "a datagram") && takes(DATAGRAMS, "another"), "datagrams");
    CHECK(number(DATAGRAMS + 1, SO_PASSCRED) == 1 && number(DATAGRAMS, SO_PASSCRED) == 0,
          "SO_PASSCRED");

    CHECK(takes(ENDED, "rest") && takes(ENDED, ""), "the end does not come");
    CHECK(send(ENDED, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%s", strerror(errno));
    CHECK(number(RESET, SO_ERROR) == ECONNRESET, "it has not heard");
    CHECK(takes(HALF + 1, "the last") && takes(HALF + 1, ""), "half is open");
    CHECK(send(HALF, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "%s", strerror(errno));
    CHECK(write(HALF + 1, "back", 4) == 4 && takes(HALF, "back"), "no way back");

    char piece[1000];
    long got, wrong = 0;
    while ((got = recv(FULL + 1, piece, sizeof piece, MSG_WAITALL)) == sizeof piece)
        for (unsigned i = 0; i < sizeof piece; i++)
            wrong += piece[i] != pattern(i);
    CHECK(got < 0 && errno == EAGAIN && wrong == 0, "%ld, %ld bytes differ", got, wrong);
    CHECK(write(FULL, "on", 2) == 2 && takes(FULL + 1, "on"), "it is full for ever");

    CHECK(recv(FRESH, text, 1, MSG_DONTWAIT) < 0 && errno == ENOTCONN, "%s",
          strerror(errno));
    CHECK(takes(ALONE, "farewell"), "alone");
    CHECK(send(ALONE, "x", 1, 0) < 0 && errno == ECONNREFUSED, "%s", strerror(errno));
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
