// A scenario: a program that arranges something, is moved, and then checks itself.
//
//     int main(int argc, char **argv)
//     {
//         scenario_begin(argc, argv);
//         ... arrange ...
//         scenario_ready();         // says "ready PID ADDRESS", returns at once
//         scenario_wait_moved();    // until the harness writes 1 at ADDRESS
//         CHECK(count == 3, "the count is %d", count);
//         return scenario_end();    // says "ok" or "failed"; 0 or 1
//     }
//
// With "bare" as argv[2] scenario_bare is set: the program is to arrange nothing and
// then to check itself all the same, for tests of one kind between two processes.
//
// argv[1] is a file or FIFO that is opened, appended to and closed for each line:
// a scenario holds no descriptor for its talk, so its table is its own. A line is
// at most PIPE_BUF bytes and is written whole.
#ifndef SCENARIO_H
#define SCENARIO_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *scenario_log;
static volatile int scenario_moved; // set by the harness with process_vm_writev(2)
static int scenario_failures;
static int scenario_bare; // arrange nothing: a test puts everything in place

__attribute__((format(printf, 1, 2), unused)) static void scenario_say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    int fd = open(scenario_log, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0 || write(fd, line, length) != length)
        _exit(3);
    close(fd);
}

// What must be true; the message says what is there instead.
#define CHECK(condition, ...)                                                           \
    do {                                                                                \
        if (!(condition)) {                                                             \
            scenario_failures++;                                                        \
            char scenario_detail[512];                                                  \
            snprintf(scenario_detail, sizeof scenario_detail, __VA_ARGS__);             \
            scenario_say("line %d: not so: %s: %s", __LINE__, #condition,               \
                         scenario_detail);                                              \
        }                                                                               \
    } while (0)

// What must succeed for the scenario to be one at all; exits 2 otherwise.
#define NEED(condition)                                                                 \
    do {                                                                                \
        if (!(condition)) {                                                             \
            scenario_say("line %d: cannot arrange: %s: %s", __LINE__, #condition,       \
                         strerror(errno));                                              \
            exit(2);                                                                    \
        }                                                                               \
    } while (0)

__attribute__((unused)) static void scenario_begin(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s LOG [ARGUMENT...]\n", argv[0]);
        exit(2);
    }
    scenario_log = argv[1];
    scenario_bare = argc > 2 && !strcmp(argv[2], "bare");
}

__attribute__((unused)) static void scenario_ready(void)
{
    scenario_say("ready %d %#lx", getpid(), (unsigned long)&scenario_moved);
}

__attribute__((unused)) static void scenario_wait_moved(void)
{
    while (!scenario_moved) {
        struct timespec moment = {0, 1000000};
        nanosleep(&moment, NULL);
    }
}

__attribute__((unused)) static int scenario_end(void)
{
    scenario_say(scenario_failures ? "failed" : "ok");
    return scenario_failures != 0;
}

#endif
