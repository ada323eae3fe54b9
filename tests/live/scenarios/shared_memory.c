// Memory that a family shares: anonymous, of memfds, of deleted files and with a name in
// /dev/shm; written while it is moved through mappings and descriptors, with holes and
// seals.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

enum { PAGE = 4096, PAGES = 512, BYTES = PAGES * PAGE };
// Where the writer notes each number, in what is anonymous and in what is open: so what
// it wrote before it was moved is still there afterwards.
enum { NOTES_AT = 400 * PAGE, NOTES = 100 * PAGE / 8, PERIOD_US = 100 };

struct count {
    volatile uint64_t mapped, stop, says;
};

static struct count *count;
static char *anonymous, *first, *again, *sealed, *private, *by_file, *named;
static char name[64];
static int by_descriptor, down[2], up[2];

static char *map(int fd, int prot, int flags)
{
    char *at = mmap(NULL, BYTES, prot, flags, fd, 0);
    NEED(at != MAP_FAILED);
    return at;
}

static int deleted_file(void)
{
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/shared_memory.%d", getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
    NEED(fd >= 0 && unlink(path) == 0 && ftruncate(fd, BYTES) == 0);
    return fd;
}

// Writes without a pause: in a mapping, and by a descriptor to the object of another.
__attribute__((noreturn)) static void write_on(void)
{
    for (uint64_t n = 1; !count->stop; n++) {
        NEED(pwrite(by_descriptor, &n, sizeof n, 7 * PAGE) == sizeof n);
        off_t at = NOTES_AT + n % NOTES * sizeof n;
        NEED(pwrite(by_descriptor, &n, sizeof n, at) == sizeof n);
        memcpy(anonymous + at, &n, sizeof n);
        count->mapped = n;
        usleep(PERIOD_US);
    }
    count->says = count->mapped;
    _exit(7);
}

__attribute__((noreturn)) static void answer(void)
{
    char byte;
    NEED(read(down[0], &byte, 1) == 1);
    CHECK(!strcmp(anonymous + 9 * PAGE, "afterwards"), "it reads %s", anonymous + 9 * PAGE);
    CHECK(!strcmp(first + 11 * PAGE, "through the other"), "it reads %s", first + 11 * PAGE);
    strcpy(by_file + 5 * PAGE, "from the child");
    strcpy(private + 6 * PAGE, "the child's");
    int fd = shm_open(name, O_RDWR, 0);
    CHECK(fd >= 0 && pread(fd, &byte, 1, 2 * PAGE) == 1 && byte == 'N', "it reads %c", byte);
    CHECK(pwrite(fd, "by name", 8, 8 * PAGE) == 8, "%s", strerror(errno));
    NEED(write(up[1], "x", 1) == 1);
    _exit(scenario_failures ? 9 : 8);
}

static void arrange(void)
{
    anonymous = map(-1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    strcpy(anonymous + 3 * PAGE, "the third");
    memset(anonymous + 256 * PAGE, 0xa5, 64 * PAGE);
    prctl(PR_SET_VMA, 0, anonymous, BYTES, "a name"); // not in every kernel
    count = (void *)anonymous;

    int fd = memfd_create("two mappings", MFD_CLOEXEC);
    NEED(fd >= 0 && ftruncate(fd, BYTES) == 0);
    first = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    again = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 * PAGE);
    NEED(again != MAP_FAILED);
    by_descriptor = fd;
    memset(first + 100 * PAGE, 0x5a, 20 * PAGE);

    fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    NEED(fd >= 0 && write(fd, "sealed", 6) == 6);
    NEED(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    int to_read = fd;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    NEED((to_read = open(path, O_RDONLY | O_CLOEXEC)) >= 0);
    sealed = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, to_read, 0);
    NEED(sealed != MAP_FAILED && close(to_read) == 0 && dup2(fd, 100) == 100 && close(fd) == 0);

    fd = deleted_file();
    by_file = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    private = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    strcpy(by_file + PAGE, "in the file");
    strcpy(private + 2 * PAGE, "its own");
    NEED(close(fd) == 0);

    snprintf(name, sizeof name, "/shared_memory.named.%d", getpid());
    fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0640);
    NEED(fd >= 0 && ftruncate(fd, BYTES) == 0 && fchmod(fd, 0606) == 0);
    named = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
    named[2 * PAGE] = 'N';
    NEED(dup2(fd, 101) == 101 && close(fd) == 0 && lseek(101, 77, SEEK_SET) == 77);
}

static void check(void)
{
    CHECK(!strcmp(anonymous + 3 * PAGE, "the third"), "it reads %s", anonymous + 3 * PAGE);
    for (int i = 256 * PAGE; i < 320 * PAGE; i++)
        if (anonymous[i] != (char)0xa5) {
            CHECK(0, "byte %d of what is anonymous", i);
            break;
        }
    CHECK(anonymous[4 * PAGE] == 0 && first[50 * PAGE] == 0, "holes are not zero");
    struct stat status;
    NEED(fstat(by_descriptor, &status) == 0);
    // Those with the notes, one with the count, twenty that were written to.
    CHECK(status.st_blocks <= 122 * 8, "the memfd has %ld blocks", (long)status.st_blocks);
    CHECK(status.st_size == BYTES, "and %ld bytes", (long)status.st_size);

    CHECK(!memcmp(sealed, "sealed", 6), "what is sealed reads %.6s", sealed);
    int seals = fcntl(100, F_GET_SEALS);
    CHECK(seals == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW), "its seals are %#x", seals);
    CHECK(pwrite(100, "x", 1, 0) < 0 && errno == EPERM, "it can be written: %s",
          strerror(errno));
    CHECK(mprotect(sealed, PAGE, PROT_READ | PROT_WRITE) < 0, "it can be made writable");
    CHECK(fcntl(by_descriptor, F_GET_SEALS) == F_SEAL_SEAL, "seals came to be");

    NEED(fstat(101, &status) == 0);
    CHECK(named[2 * PAGE] == 'N' && (status.st_mode & 07777) == 0606 && status.st_nlink == 1,
          "what is named has mode %o", status.st_mode);
    CHECK(status.st_size == BYTES && lseek(101, 0, SEEK_CUR) == 77, "it is at %ld",
          (long)lseek(101, 0, SEEK_CUR));
    CHECK(!strcmp(by_file + PAGE, "in the file") && !strcmp(private + PAGE, "in the file"),
          "the file reads %s and %s", by_file + PAGE, private + PAGE);
    CHECK(!strcmp(private + 2 * PAGE, "its own") && !by_file[2 * PAGE], "its own page: %s, %s",
          private + 2 * PAGE, by_file + 2 * PAGE);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(pipe(down) == 0 && pipe(up) == 0);
    arrange();
    pid_t writer = fork(), child;
    if (writer == 0)
        write_on();
    NEED(writer > 0 && (child = fork()) >= 0);
    if (child == 0)
        answer();
    while (count->mapped < 1000)
        usleep(1000);
    scenario_ready();
    scenario_wait_moved();

    check();
    count->stop = 1;
    int status;
    CHECK(waitpid(writer, &status, 0) == writer && WEXITSTATUS(status) == 7, "it ended as %#x",
          status);
    uint64_t written;
    memcpy(&written, first + 7 * PAGE, sizeof written);
    CHECK(count->says >= 1000 && written == count->says && count->mapped == written,
          "it says %lu, and has written %lu and %lu", count->says, written, count->mapped);
    for (uint64_t n = written > NOTES ? written - NOTES + 1 : 1; n <= written; n++) {
        uint64_t one, other;
        memcpy(&one, first + NOTES_AT + n % NOTES * sizeof n, sizeof n);
        memcpy(&other, anonymous + NOTES_AT + n % NOTES * sizeof n, sizeof n);
        if (one != n || other != n) {
            CHECK(0, "it wrote %lu, and %lu and %lu are there", n, one, other);
            break;
        }
    }

    strcpy(anonymous + 9 * PAGE, "afterwards");
    strcpy(again + 7 * PAGE, "through the other");
    char byte;
    NEED(write(down[1], "x", 1) == 1 && read(up[0], &byte, 1) == 1);
    CHECK(!strcmp(by_file + 5 * PAGE, "from the child"), "it reads %s", by_file + 5 * PAGE);
    CHECK(!strcmp(named + 8 * PAGE, "by name"), "it reads %s", named + 8 * PAGE);
    CHECK(shm_unlink(name) == 0, "its name: %s", strerror(errno));
    CHECK(!private[6 * PAGE] && !strcmp(private + 5 * PAGE, "from the child"), "private: %s",
          private + 6 * PAGE);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 8, "it ended as %#x",
          status);
    return scenario_end();
}
