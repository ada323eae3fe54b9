// Files without a name that are open: a memfd and a deleted file, with their contents,
// flags and positions; two numbers of one description, and two descriptions of one file.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGE = 4096 };

static int memory, doubled, again, readable, deleted, empty;

static int reopen(int fd, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, flags);
}

static int file(const char *log, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.%s", log, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0604);
    NEED(fd >= 0 && unlink(path) == 0);
    return fd;
}

static void compare(int fd, off_t at, const char *wanted)
{
    char there[64] = "";
    long size = pread(fd, there, strlen(wanted), at);
    CHECK(size == (long)strlen(wanted) && !memcmp(there, wanted, size), "fd %d: %s at %ld", fd,
          there, (long)at);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED((memory = memfd_create("a name", MFD_ALLOW_SEALING)) >= 0);
    NEED(write(memory, "begin", 5) == 5 && pwrite(memory, "end", 3, 100 * PAGE + 10) == 3);
    NEED(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    NEED((doubled = dup(memory)) >= 0);
    NEED((again = reopen(memory, O_RDWR | O_APPEND | O_CLOEXEC)) >= 0);
    NEED((readable = reopen(memory, O_RDONLY | O_NONBLOCK)) >= 0);
    NEED(lseek(readable, 4711, SEEK_SET) == 4711);
    deleted = file(scenario_log, "deleted");
    NEED(write(deleted, "of the disk", 11) == 11 && pwrite(deleted, "x", 1, 3 * PAGE) == 1);
    empty = file(scenario_log, "empty");
    scenario_ready();
    scenario_wait_moved();

    compare(memory, 0, "begin");
    compare(memory, 100 * PAGE + 10, "end");
    compare(readable, 0, "begin");
    compare(deleted, 0, "of the disk");
    compare(deleted, 3 * PAGE, "x");
    struct stat status;
    CHECK(fstat(memory, &status) == 0 && status.st_size == 100 * PAGE + 13, "%ld bytes",
          (long)status.st_size);
    CHECK(status.st_blocks <= 16, "%ld blocks", (long)status.st_blocks);
    CHECK(fstat(deleted, &status) == 0 && status.st_size == 3 * PAGE + 1 &&
              (status.st_mode & 0777) == 0604 && status.st_nlink == 0,
          "%ld bytes, mode %o, %ld names", (long)status.st_size, status.st_mode,
          (long)status.st_nlink);
    CHECK(fstat(empty, &status) == 0 && status.st_size == 0, "%ld bytes", (long)status.st_size);
    CHECK(fcntl(memory, F_GET_SEALS) == F_SEAL_SHRINK, "seals: %#x", fcntl(memory, F_GET_SEALS));

    CHECK(lseek(memory, 0, SEEK_CUR) == 5, "it is at %ld", (long)lseek(memory, 0, SEEK_CUR));
    NEED(lseek(memory, 50, SEEK_SET) == 50);
    CHECK(lseek(doubled, 0, SEEK_CUR) == 50, "the other number is at %ld",
          (long)lseek(doubled, 0, SEEK_CUR));
    CHECK(lseek(readable, 0, SEEK_CUR) == 4711, "the one to be read is at %ld",
          (long)lseek(readable, 0, SEEK_CUR));
    int flags = fcntl(readable, F_GETFL);
    CHECK((flags & O_ACCMODE) == O_RDONLY && flags & O_NONBLOCK, "its flags are %#o", flags);
    flags = fcntl(again, F_GETFL);
    CHECK((flags & O_ACCMODE) == O_RDWR && flags & O_APPEND, "the others %#o", flags);
    CHECK(fcntl(again, F_GETFD) == FD_CLOEXEC && fcntl(memory, F_GETFD) == 0, "at exec");
    NEED(write(again, "more", 4) == 4);
    compare(memory, 100 * PAGE + 13, "more");
    CHECK(ftruncate(deleted, 5) == 0 && lseek(deleted, 0, SEEK_CUR) == 11, "%s",
          strerror(errno));
    return scenario_end();
}
