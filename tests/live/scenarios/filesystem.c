// Its own working directory and umask.
#include <sys/stat.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    char made[] = "made-XXXXXX", here[4096] = "", now[4096] = "";
    NEED(mkdtemp(made) != NULL);
    NEED(chdir(made) == 0);
    NEED(getcwd(here, sizeof here) != NULL);
    umask(0137);
    scenario_ready();
    scenario_wait_moved();

    NEED(getcwd(now, sizeof now) != NULL);
    CHECK(strcmp(now, here) == 0, "the working directory is %.400s", now);
    mode_t mask = umask(0);
    CHECK(mask == 0137, "the umask is %o", mask);
    CHECK(chdir("..") == 0 && rmdir(made) == 0, "%s is not empty", made);
    return scenario_end();
}
