// The heap goes on where it ended; arguments, environment and auxv are found.
#include <sys/auxv.h>

#include "scenario.h"

extern char **environ;

static long slurp(const char *path, char *buffer, long size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    NEED(fd >= 0);
    long length = read(fd, buffer, size);
    NEED(length >= 0);
    close(fd);
    return length;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(sbrk(12345) != (void *)-1); // an end that is no multiple of anything
    char *end = sbrk(0);
    end[-1] = 'x';
    static char command[2][4096], environment[2][65536], auxv[2][4096];
    long command_length = slurp("/proc/self/cmdline", command[0], 4096);
    long environment_length = slurp("/proc/self/environ", environment[0], 65536);
    long auxv_length = slurp("/proc/self/auxv", auxv[0], 4096);
    scenario_ready();
    scenario_wait_moved();

    CHECK(sbrk(0) == (void *)end, "the break is %p, not %p", sbrk(0), (void *)end);
    CHECK(sbrk(100000) == (void *)end, "the heap does not go on: %s", strerror(errno));
    end[99999] = 'y';
    CHECK(end[-1] == 'x', "the heap has lost a byte");
    long length = slurp("/proc/self/cmdline", command[1], 4096);
    CHECK(length == command_length && !memcmp(command[0], command[1], length),
          "the arguments have %ld bytes", length);
    length = slurp("/proc/self/environ", environment[1], 65536);
    CHECK(length == environment_length && !memcmp(environment[0], environment[1], length),
          "the environment has %ld bytes", length);
    length = slurp("/proc/self/auxv", auxv[1], 4096);
    CHECK(length == auxv_length && !memcmp(auxv[0], auxv[1], length),
          "the auxiliary vector has %ld bytes", length);
    CHECK(getauxval(AT_PAGESZ) == 4096, "AT_PAGESZ is %lu", getauxval(AT_PAGESZ));
    return scenario_end();
}
