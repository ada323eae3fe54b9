// Files keep position, flags and who shares a description with whom; nothing is
// created or cut off again.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/resource.h>
#include <sys/stat.h>

enum { SHARED = 10, SHARED_TOO = 11, AGAIN = 12, LOG = 13, EAGER = 14, HIGH = 700 };

static void place(int fd, int number, int flags)
{
    NEED(fd >= 0);
    NEED(dup3(fd, number, flags) == number);
    close(fd);
}

static void arrange(void)
{
    place(open("data", O_RDWR | O_CREAT | O_TRUNC, 0600), SHARED, 0);
    NEED(write(SHARED, "0123456789", 10) == 10);
    NEED(lseek(SHARED, 4, SEEK_SET) == 4);
    NEED(dup3(SHARED, SHARED_TOO, O_CLOEXEC) == SHARED_TOO);
    place(open("data", O_RDONLY), AGAIN, 0);
    NEED(lseek(AGAIN, 7, SEEK_SET) == 7);
    place(open("log", O_WRONLY | O_APPEND | O_CREAT | O_TRUNC, 0600), LOG, 0);
    NEED(write(LOG, "before\n", 7) == 7);
    place(open("data", O_RDWR | O_NONBLOCK | O_DSYNC), EAGER, O_CLOEXEC);
    place(open("data", O_RDONLY | O_NOATIME), HIGH, 0);
}

static int flags(int fd)
{
    return fcntl(fd, F_GETFL) & ~0100000; // O_LARGEFILE, as the kernel has it
}

static void check(void)
{
    CHECK(lseek(SHARED, 0, SEEK_CUR) == 4, "%ld", (long)lseek(SHARED, 0, SEEK_CUR));
    CHECK(lseek(AGAIN, 0, SEEK_CUR) == 7, "%ld", (long)lseek(AGAIN, 0, SEEK_CUR));
    lseek(SHARED, 6, SEEK_SET);
    CHECK(lseek(SHARED_TOO, 0, SEEK_CUR) == 6, "two descriptions now");
    CHECK(lseek(AGAIN, 0, SEEK_CUR) == 7, "one description now");
    CHECK(fcntl(SHARED, F_GETFD) == 0, "%d", fcntl(SHARED, F_GETFD));
    CHECK(fcntl(SHARED_TOO, F_GETFD) == FD_CLOEXEC, "%d", fcntl(SHARED_TOO, F_GETFD));
    CHECK(fcntl(EAGER, F_GETFD) == FD_CLOEXEC, "%d", fcntl(EAGER, F_GETFD));
    CHECK(flags(SHARED) == O_RDWR, "%#o", flags(SHARED));
    CHECK(flags(AGAIN) == O_RDONLY, "%#o", flags(AGAIN));
    CHECK(flags(LOG) == (O_WRONLY | O_APPEND), "%#o", flags(LOG));
    CHECK(flags(EAGER) == (O_RDWR | O_NONBLOCK | O_DSYNC), "%#o", flags(EAGER));
    CHECK(flags(HIGH) == (O_RDONLY | O_NOATIME), "%#o", flags(HIGH));
    char text[16] = "";
    CHECK(pread(SHARED, text, 10, 0) == 10 && !memcmp(text, "0123456789", 10), "%s",
          text);
    CHECK(write(LOG, "after\n", 6) == 6, "%s", strerror(errno));
    struct stat file;
    CHECK(fstat(LOG, &file) == 0 && file.st_size == 13, "%ld", (long)file.st_size);
    for (int fd = 3; fd < 1000; fd++) {
        int known = (fd >= SHARED && fd <= EAGER) || fd == HIGH;
        CHECK((fcntl(fd, F_GETFD) >= 0) == known, "fd %d", fd);
    }
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
