// A program that nobody but root may look into any more once it was told so: SIGUSR1.

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

static void hide(int number)
{
    (void)number;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

int main(void)
{
    struct sigaction action = {.sa_handler = hide};
    sigaction(SIGUSR1, &action, NULL);
    for (;;)
        pause();
}
