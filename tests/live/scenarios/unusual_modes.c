// It has had a NUMA policy and given it back: nothing unusual is left, and it goes.
// With "ldt", "numa", "dispatch" or "ports" as argument it keeps what is refused.
#include <asm/ldt.h>
#include <sys/io.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "scenario.h"

#define PR_SET_SYSCALL_USER_DISPATCH_ 59

static char let_pass;

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    const char *keep = argc > 2 ? argv[2] : "";
    if (!strcmp(keep, "ldt")) {
        struct user_desc segment = {.entry_number = 1, .limit = 0xfff, .seg_32bit = 1,
                                    .limit_in_pages = 1, .useable = 1};
        NEED(syscall(SYS_modify_ldt, 1, &segment, sizeof segment) == 0);
    }
    unsigned long node = 1;
    if (!strcmp(keep, "numa"))
        NEED(syscall(SYS_set_mempolicy, 2 /* MPOL_BIND */, &node, 8 * sizeof node) == 0);
    if (!strcmp(keep, "dispatch"))
        NEED(prctl(PR_SET_SYSCALL_USER_DISPATCH_, 1, 0, 0, &let_pass) == 0);
    if (!strcmp(keep, "ports"))
        NEED(ioperm(0x80, 1, 1) == 0);
    if (!*keep) {
        NEED(syscall(SYS_set_mempolicy, 2 /* MPOL_BIND */, &node, 8 * sizeof node) == 0);
        NEED(syscall(SYS_set_mempolicy, 0 /* MPOL_DEFAULT */, NULL, 0) == 0);
    }
    scenario_ready();
    scenario_wait_moved();
    return scenario_end();
}
