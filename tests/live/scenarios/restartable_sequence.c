// A thread that is stopped in the midst of a restartable sequence begins it anew.
//
// The sequence spins until the move. If the kernel forgot the sequence while the thread
// was in it, the thread would go on in its midst and come out without its pointer.
#include <sys/rseq.h>

#include "scenario.h"

static uint64_t pointer_at_commit;
static uint64_t entered;

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(__rseq_size >= 20);
    struct rseq *area =
        (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    uint64_t descriptor;
    scenario_ready();

    __asm__ volatile(".pushsection __rseq_cs, \"aw\"\n"
                     ".balign 32\n"
                     "10: .long 0, 0\n"
                     "    .quad 1f, 2f - 1f, 4f\n"
                     ".popsection\n"
                     "3:  incq %[entered]\n"
                     "    leaq 10b(%%rip), %%rax\n"
                     "    movq %%rax, %[descriptor]\n"
                     "    movq %%rax, %[pointer]\n"
                     "1:  cmpl $0, %[moved]\n"
                     "    je 1b\n"
                     "    movq %[pointer], %%rax\n"
                     "    movq %%rax, %[at_commit]\n"
                     "2:  jmp 5f\n"
                     "    .byte 0x0f, 0xb9, 0x3d\n" // ud1, and the signature in it
                     "    .long 0x53053053\n"
                     "4:  jmp 3b\n"
                     "5:\n"
                     : [entered] "+m"(entered), [descriptor] "=m"(descriptor),
                       [pointer] "+m"(area->rseq_cs), [at_commit] "=m"(pointer_at_commit)
                     : [moved] "m"(scenario_moved)
                     : "rax", "memory", "cc");

    CHECK(pointer_at_commit == descriptor, "the sequence ended as %#lx, not %#lx",
          (unsigned long)pointer_at_commit, (unsigned long)descriptor);
    CHECK(entered > 1, "it was entered %lu times", (unsigned long)entered);
    return scenario_end();
}
