// Each thread has the name that it gave itself, whatever the bytes.
#include <pthread.h>
#include <sys/prctl.h>

#include "scenario.h"

static const char LEADER[16] = "a) b (c\n\\ \xff", THREAD[16] = "123456789012345";
static volatile int named, go;
static char seen[16];

static void *other(void *argument)
{
    (void)argument;
    NEED(prctl(PR_SET_NAME, THREAD, 0, 0, 0) == 0);
    named = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    prctl(PR_GET_NAME, seen, 0, 0, 0);
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_NAME, LEADER, 0, 0, 0) == 0);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!named)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    scenario_ready();
    scenario_wait_moved();

    char name[16] = "";
    NEED(prctl(PR_GET_NAME, name, 0, 0, 0) == 0);
    CHECK(strcmp(name, LEADER) == 0, "the leader is called %s", name);
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(strcmp(seen, THREAD) == 0, "the thread is called %s", seen);
    return scenario_end();
}
