// Fewer capabilities than root has, one of them ambient; with an argument,
// no new privileges.
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "scenario.h"

enum { KEPT = CAP_NET_BIND_SERVICE, ALSO_KEPT = CAP_KILL, DROPPED = CAP_SYS_BOOT };

static struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_CAPBSET_DROP, DROPPED, 0, 0, 0) == 0);
    struct __user_cap_data_struct wanted[2] = {{
        .effective = 1u << ALSO_KEPT,
        .permitted = 1u << KEPT | 1u << ALSO_KEPT,
        .inheritable = 1u << KEPT,
    }};
    NEED(prctl(PR_SET_SECUREBITS, 1 << 2 /* SECBIT_NO_SETUID_FIXUP */, 0, 0, 0) == 0);
    NEED(syscall(SYS_capset, &header, wanted) == 0);
    NEED(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, KEPT, 0, 0) == 0);
    // On demand: a move refuses it, for it may hide a Landlock domain.
    int confined = argc > 2;
    NEED(!confined || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    struct __user_cap_data_struct now[2];
    NEED(syscall(SYS_capget, &header, now) == 0);
    CHECK(now[0].effective == wanted[0].effective && now[1].effective == 0,
          "effective %#x", now[0].effective);
    CHECK(now[0].permitted == wanted[0].permitted && now[1].permitted == 0,
          "permitted %#x", now[0].permitted);
    CHECK(now[0].inheritable == wanted[0].inheritable, "inheritable %#x",
          now[0].inheritable);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, KEPT, 0, 0) == 1, "not ambient");
    CHECK(prctl(PR_CAPBSET_READ, DROPPED, 0, 0, 0) == 0, "CAP_SYS_BOOT is back");
    CHECK(prctl(PR_CAPBSET_READ, KEPT, 0, 0, 0) == 1, "the bounding set is smaller");
    CHECK(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == 1 << 2, "securebits %#x",
          prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == confined, "no_new_privs is %d",
          !confined);
    return scenario_end();
}
