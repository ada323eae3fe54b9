// The plainest loops that there are, to compare with: what does this machine do at best?
//
//   raw copy BYTES                 memcpy(3) of 64 MiB, again and again
//   raw receive ADDRESS BYTES      print "port N", then read from one connection
//   raw send ADDRESS PORT BYTES    write to it
//
// Each prints "SECONDS CPU_SECONDS" for the bytes. Buffers are warm before the clock runs,
// and a sender's time ends when the receiver says that it has everything. Exit codes: 0 it
// is done, 2 wrong arguments, 3 it did not work.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 256 << 10, COPY_BYTES = 64 << 20 };

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double cpu_s(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static int fail(const char *what)
{
    fprintf(stderr, "raw: %s: %s\n", what, strerror(errno));
    return 3;
}

static int copy(uint64_t bytes)
{
    char *from = malloc(COPY_BYTES), *to = malloc(COPY_BYTES);
    if (!from || !to)
        return fail("malloc");
    memset(from, 0x5a, COPY_BYTES);
    memset(to, 0xa5, COPY_BYTES);
    double began_s = now_s(), cpu_began_s = cpu_s();
    for (uint64_t done = 0; done < bytes;) {
        size_t some = bytes - done < COPY_BYTES ? bytes - done : COPY_BYTES;
        memcpy(to, from, some);
        __asm__ volatile("" ::"r"(to) : "memory");  // somebody could look at it
        done += some;
    }
    printf("%.9f %.9f\n", now_s() - began_s, cpu_s() - cpu_began_s);
    return 0;
}

static bool parse_address(const char *text, uint16_t port, struct sockaddr_in *address)
{
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    return inet_pton(AF_INET, text, &address->sin_addr) == 1;
}

static int receive(struct sockaddr_in address, uint64_t bytes)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t length = sizeof address;
    char *buffer = malloc(BUFFER_BYTES);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        return fail("listen");
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    int peer = accept(listener, NULL, NULL);
    if (peer < 0 || !buffer)
        return fail("accept");
    double began_s = now_s(), cpu_began_s = cpu_s();
    for (uint64_t done = 0; done < bytes;) {
        ssize_t some = read(peer, buffer, BUFFER_BYTES);
        if (some <= 0)
            return fail("read");
        done += (uint64_t)some;
    }
    if (write(peer, "d", 1) != 1)
        return fail("write");
    printf("%.9f %.9f\n", now_s() - began_s, cpu_s() - cpu_began_s);
    return 0;
}

static int send_all(struct sockaddr_in address, uint64_t bytes)
{
    int peer = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    char *buffer = malloc(BUFFER_BYTES), done_byte;
    if (!buffer || connect(peer, (struct sockaddr *)&address, sizeof address) < 0)
        return fail("connect");
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    for (unsigned i = 0; i < BUFFER_BYTES; i++)
        buffer[i] = (char)(i * 2654435761U >> 13);
    double began_s = now_s(), cpu_began_s = cpu_s();
    for (uint64_t done = 0; done < bytes;) {
        size_t most = bytes - done < BUFFER_BYTES ? bytes - done : BUFFER_BYTES;
        ssize_t some = write(peer, buffer, most);
        if (some < 0)
            return fail("write");
        done += (uint64_t)some;
    }
    if (read(peer, &done_byte, 1) != 1)
        return fail("read");
    printf("%.9f %.9f\n", now_s() - began_s, cpu_s() - cpu_began_s);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address;
    if (argc == 3 && strcmp(argv[1], "copy") == 0)
        return copy(strtoull(argv[2], NULL, 10));
    if (argc == 4 && strcmp(argv[1], "receive") == 0 && parse_address(argv[2], 0, &address))
        return receive(address, strtoull(argv[3], NULL, 10));
    if (argc == 5 && strcmp(argv[1], "send") == 0 &&
        parse_address(argv[2], (uint16_t)atoi(argv[3]), &address))
        return send_all(address, strtoull(argv[4], NULL, 10));
    fprintf(stderr, "usage: raw copy BYTES | receive ADDRESS BYTES | "
                    "send ADDRESS PORT BYTES\n");
    return 2;
}
