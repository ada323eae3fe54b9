// A directory stays the starting point of openat(2), and reading it goes on where it
// was: no entry twice, none left out.
#define _GNU_SOURCE
#include "scenario.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { FOLDER = 10, READING = 11, FILES = 200 };

static unsigned char buffer[1024];

// Counts the entries called file-N that one getdents64(2) gives; -1 at the end.
static int count_some(int fd)
{
    long bytes = syscall(SYS_getdents64, fd, buffer, sizeof buffer);
    if (bytes <= 0)
        return -1;
    int files = 0;
    for (long at = 0; at < bytes;) {
        struct dirent64 *entry = (struct dirent64 *)(buffer + at);
        files += !strncmp(entry->d_name, "file-", 5);
        at += entry->d_reclen;
    }
    return files;
}

static void arrange(void)
{
    mkdir("folder", 0700);
    for (int i = 0; i < FILES; i++) {
        char name[32];
        snprintf(name, sizeof name, "folder/file-%d", i);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        NEED(fd >= 0);
        close(fd);
    }
    int fd = open("folder", O_RDONLY | O_DIRECTORY);
    NEED(fd >= 0 && dup2(fd, FOLDER) == FOLDER);
    close(fd);
    fd = open("folder", O_RDONLY | O_DIRECTORY);
    NEED(fd >= 0 && dup2(fd, READING) == READING);
    close(fd);
    int seen = count_some(READING);
    NEED(seen > 0 && seen < FILES);
    NEED(ftruncate(openat(FOLDER, "file-0", O_RDWR), seen) == 0); // how many so far
    close(3);
}

static void check(void)
{
    struct stat first;
    CHECK(fstatat(FOLDER, "file-0", &first, 0) == 0, "%s", strerror(errno));
    int total = first.st_size, some;
    while ((some = count_some(READING)) >= 0)
        total += some;
    CHECK(total == FILES, "%d", total);
    total = 0;
    while ((some = count_some(FOLDER)) >= 0)
        total += some;
    CHECK(total == FILES, "%d", total);
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
