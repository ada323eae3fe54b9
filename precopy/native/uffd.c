// Asynchronous write-protection: the kernel notes first writes and stops nobody.
//
// Documentation/admin-guide/mm/userfaultfd.rst

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "api.h"

enum {
    FEATURE_PAGEFAULT_FLAG_WP = 1 << 0,
    FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12,
    FEATURE_WP_UNPOPULATED = 1 << 13,
    FEATURE_WP_ASYNC = 1 << 15,
};

int64_t uffd_begin(int32_t uffd) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_HUGETLBFS_SHMEM |
                    FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
    };
    return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int64_t uffd_register(int32_t uffd, uint64_t start, uint64_t end) {
    struct uffdio_register request = {
        .range = {.start = start, .len = end - start},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    return ioctl(uffd, UFFDIO_REGISTER, &request) < 0 ? -errno : 0;
}

int64_t uffd_marks_off(int32_t uffd, uint64_t start, uint64_t end) {
    struct uffdio_writeprotect marks_off = {
        .range = {.start = start, .len = end - start},
        .mode = 0,
    };
    return ioctl(uffd, UFFDIO_WRITEPROTECT, &marks_off) < 0 ? -errno : 0;
}
