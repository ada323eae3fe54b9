// An inotify instance watches what it watched, under the same numbers, and tells of
// nothing that it was not asked about.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/inotify.h>
#include <sys/stat.h>

enum { PLACE = 10, EMPTY = 11 };

static char folder[] = "./watched", file[] = "./watched/file", link_[] = "./watched/link";

static void place(int fd, int number)
{
    NEED(fd >= 0 && dup2(fd, number) == number && close(fd) == 0);
}

static void touch(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    NEED(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
}

static void arrange(void)
{
    char events[4096];
    NEED(mkdirat(AT_FDCWD, folder, 0700) == 0 || errno == EEXIST);
    touch(file);
    NEED(symlink("file", link_) == 0 || errno == EEXIST);
    place(inotify_init1(IN_NONBLOCK), PLACE);
    place(inotify_init1(0), EMPTY);
    // Number 1 is given up, so that the others do not begin with it.
    NEED(inotify_add_watch(PLACE, "/", IN_DELETE) == 1 && inotify_rm_watch(PLACE, 1) == 0);
    NEED(inotify_add_watch(PLACE, folder, IN_CREATE | IN_ONLYDIR) == 2);
    NEED(inotify_add_watch(PLACE, file, IN_MODIFY | IN_ONESHOT) == 3);
    NEED(inotify_add_watch(PLACE, link_, IN_ATTRIB | IN_DONT_FOLLOW) == 4);
    NEED(read(PLACE, events, sizeof events) > 0); // that number 1 is gone
}

// The next event is this one.
static void expect(int watch, uint32_t mask, const char *name)
{
    static char events[4096] __attribute__((aligned(8)));
    static long have, at;
    if (at == have) {
        have = read(PLACE, events, sizeof events);
        at = 0;
        if (have <= 0) {
            have = 0;
            CHECK(0, "nothing of watch %d: %s", watch, strerror(errno));
            return;
        }
    }
    struct inotify_event *event = (void *)(events + at);
    at += sizeof *event + event->len;
    CHECK(event->wd == watch && event->mask == mask &&
              !strcmp(event->len ? event->name : "", name),
          "watch %d, mask %#x, %s", event->wd, event->mask, event->len ? event->name : "");
}

static void check(void)
{
    char events[4096];
    CHECK(read(PLACE, events, sizeof events) < 0 && errno == EAGAIN, "%s", strerror(errno));
    CHECK(!(fcntl(EMPTY, F_GETFL) & O_NONBLOCK), "it does not block");
    touch("./watched/made");
    expect(2, IN_CREATE, "made");
    touch(file);
    expect(3, IN_MODIFY, "");
    expect(3, IN_IGNORED, "");
    NEED(fchownat(AT_FDCWD, link_, getuid(), getgid(), AT_SYMLINK_NOFOLLOW) == 0);
    expect(4, IN_ATTRIB, "");
    CHECK(inotify_add_watch(PLACE, "./watched/made", IN_OPEN) == 5, "not the next number");
    unlink("./watched/made");
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
