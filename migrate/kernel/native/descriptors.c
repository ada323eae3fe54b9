// /proc/PID/fd and fdinfo, all of it in one call: a process may have ten thousands.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api.h"

enum { LINK_BYTES_MAX = 4096, ALIGNMENT = 8 };

static int64_t read_whole(int directory, const char *name, char *out, uint64_t size)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    uint64_t used = 0;
    ssize_t got;
    do {
        got = read(fd, out + used, size - used);
        if (got > 0)
            used += got;
    } while (got > 0 && used < size);
    int error = errno;
    close(fd);
    if (got < 0)
        return -error;
    return used == size ? -ENOSPC : (int64_t)used;
}

// One descriptor to `out`; the bytes used, or -errno.
static int64_t read_one(int links, int infos, const char *name, char *out, uint64_t size)
{
    struct descriptor_row row = {.number = atoi(name)};
    if (size < sizeof row + LINK_BYTES_MAX + ALIGNMENT)
        return -ENOSPC;
    ssize_t length = readlinkat(links, name, out + sizeof row, LINK_BYTES_MAX);
    if (length < 0)
        return -errno;
    row.link_bytes = length;
    uint64_t used = sizeof row + length;
    int64_t r = read_whole(infos, name, out + used, size - used - ALIGNMENT);
    if (r < 0)
        return r;
    row.info_bytes = r;
    used += r;
    struct stat found;
    if (fstatat(links, name, &found, 0) < 0)
        return -errno;
    row.mode = found.st_mode;
    row.device = found.st_dev;
    row.inode = found.st_ino;
    row.special = found.st_rdev;
    memcpy(out, &row, sizeof row);
    return (used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int64_t descriptors_read(int pid, void *rows, uint64_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
    int infos = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *links = infos < 0 ? NULL : opendir(path);
    int64_t r = links ? 0 : -errno;
    uint64_t used = 0;
    for (struct dirent *entry; r >= 0;) {
        errno = 0;
        entry = readdir(links);
        if (!entry) {
            r = -errno;
            break;
        }
        if (entry->d_name[0] == '.')
            continue;
        int number = atoi(entry->d_name);
        if (pid == getpid() && (number == infos || number == dirfd(links)))
            continue; // these two are for this call only
        r = read_one(dirfd(links), infos, entry->d_name, (char *)rows + used,
                     size - used);
        if (r == -ENOENT)
            r = 0; // closed since
        else if (r > 0)
            used += r;
    }
    if (links)
        closedir(links);
    if (infos >= 0)
        close(infos);
    return r < 0 ? r : (int64_t)used;
}
