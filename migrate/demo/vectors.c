// A stretch of work whose state is in registers alone. Whoever stops, copies and resumes
// the thread in its midst has to bring along every register, or it shows.

#include "vectors.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>

enum { SPINS = 100 };

_Static_assert(offsetof(struct vectors, steps) == 2048, "asm below");
_Static_assert(offsetof(struct vectors, nap) == 2112, "asm below");
_Static_assert(offsetof(struct vectors, masks) == 2128, "asm below");
_Static_assert(offsetof(struct vectors, mxcsr) == 2132, "asm below");
_Static_assert(offsetof(struct vectors, x87) == 2136, "asm below");

// One stretch: load them all; VECTORS_ROUNDS times, let all lanes grow SPINS times and
// sleep in the kernel; store them all. Returns what the calls of nanosleep(2) returned,
// ORed together. In assembly, because a compiler would spill the registers around a
// system call.
//
// rbx is the struct, r12 counts rounds, r13 gathers results.
asm(".text\n"
    ".macro LOAD_xmm r, at\n movdqu \\at(%rbx), %xmm\\r\n .endm\n"
    ".macro SAVE_xmm r, at\n movdqu %xmm\\r, \\at(%rbx)\n .endm\n"
    ".macro GROW_xmm r\n paddq %xmm15, %xmm\\r\n .endm\n"
    ".macro LOAD_ymm r, at\n vmovdqu \\at(%rbx), %ymm\\r\n .endm\n"
    ".macro SAVE_ymm r, at\n vmovdqu %ymm\\r, \\at(%rbx)\n .endm\n"
    ".macro GROW_ymm r\n vpaddq %ymm15, %ymm\\r, %ymm\\r\n .endm\n"
    ".macro LOAD_zmm r, at\n vmovdqu64 \\at(%rbx), %zmm\\r\n .endm\n"
    ".macro SAVE_zmm r, at\n vmovdqu64 %zmm\\r, \\at(%rbx)\n .endm\n"
    ".macro GROW_zmm r\n vpaddq %zmm15, %zmm\\r, %zmm\\r\n .endm\n"
    ".macro FIRST_xmm\n .endm\n"
    ".macro FIRST_ymm\n .endm\n"
    ".macro FIRST_zmm\n kmovw 2128(%rbx), %k1\n kmovw 2130(%rbx), %k2\n .endm\n"
    ".macro LAST_xmm\n .endm\n"
    ".macro LAST_ymm\n vzeroupper\n .endm\n"
    ".macro LAST_zmm\n kmovw %k1, 2128(%rbx)\n kmovw %k2, 2130(%rbx)\n vzeroupper\n .endm\n"

    // Register 15 holds the steps; `registers` are all the others.
    ".macro STRETCH kind, registers:vararg\n"
    ".type stretch_\\kind, @function\n"
    "stretch_\\kind:\n"
    "push %rbx\n push %r12\n push %r13\n sub $16, %rsp\n"
    "stmxcsr (%rsp)\n fnstcw 8(%rsp)\n"  // the caller's: x86-64 psABI, 3.2.1
    "mov %rdi, %rbx\n"
    "mov $16, %r12d\n"
    "xor %r13d, %r13d\n"
    "ldmxcsr 2132(%rbx)\n fldcw 2136(%rbx)\n"
    "FIRST_\\kind\n"
    ".irp r, \\registers\n LOAD_\\kind \\r, 64*\\r\n .endr\n"
    "LOAD_\\kind 15, 2048\n"
    "1: mov $100, %ecx\n"
    "2:\n"
    ".irp r, \\registers\n GROW_\\kind \\r\n .endr\n"
    "dec %ecx\n jnz 2b\n"
    "mov $35, %eax\n lea 2112(%rbx), %rdi\n xor %esi, %esi\n syscall\n"
    "or %rax, %r13\n"
    "dec %r12d\n jnz 1b\n"
    ".irp r, \\registers\n SAVE_\\kind \\r, 64*\\r\n .endr\n"
    "SAVE_\\kind 15, 2048\n"
    "LAST_\\kind\n"
    "stmxcsr 2132(%rbx)\n fnstcw 2136(%rbx)\n"
    "ldmxcsr (%rsp)\n fldcw 8(%rsp)\n"
    "mov %r13, %rax\n"
    "add $16, %rsp\n pop %r13\n pop %r12\n pop %rbx\n"
    "ret\n"
    ".size stretch_\\kind, . - stretch_\\kind\n"
    ".endm\n"
    "STRETCH xmm 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
    "STRETCH ymm 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14\n"
    "STRETCH zmm 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,16,17,18,19,20,21,22,23,24,25,26,27,28,"
    "29,30,31\n");
_Static_assert(VECTORS_ROUNDS == 16 && SPINS == 100 && SYS_nanosleep == 35, "asm above");

long stretch_xmm(struct vectors *);
long stretch_ymm(struct vectors *);
long stretch_zmm(struct vectors *);

static bool grew_as_expected(const struct vectors *before, const struct vectors *after,
                             unsigned registers, unsigned lanes)
{
    for (unsigned l = 0; l < lanes; l++) {
        uint64_t growth = VECTORS_ROUNDS * SPINS * before->steps[l];
        for (unsigned r = 0; r < registers; r++)
            if (r != 15 && after->lanes[r][l] != before->lanes[r][l] + growth)
                return false;
    }
    return memcmp(before->steps, after->steps, sizeof before->steps) == 0 &&
           before->masks == after->masks && before->mxcsr == after->mxcsr &&
           before->x87 == after->x87;
}

uint32_t vectors_widest(void)
{
    if (__builtin_cpu_supports("avx512f"))
        return 512;
    return __builtin_cpu_supports("avx2") ? 256 : 128;
}

void vectors_init(struct vectors *v)
{
    *v = (struct vectors){
        .nap = {.tv_nsec = 500000},
        .masks = 0x5a5ac3c3,
        .mxcsr = 0x7f80,  // all exceptions masked; rounds to zero
        .x87 = 0x0b7f,    // all exceptions masked; rounds up
    };
    for (unsigned l = 0; l < VECTORS_LANES_MAX; l++) {
        v->steps[l] = l + 1;
        for (unsigned r = 0; r < VECTORS_REGISTERS_MAX; r++)
            v->lanes[r][l] = (r * VECTORS_LANES_MAX + l + 1) * 0x9e3779b97f4a7c15ULL;
    }
}

long vectors_grow(struct vectors *v, uint32_t bits)
{
    struct vectors before = *v;
    long results = bits == 512   ? stretch_zmm(v)
                   : bits == 256 ? stretch_ymm(v)
                                 : stretch_xmm(v);
    if (!grew_as_expected(&before, v, bits == 512 ? 32 : 16, bits / 64))
        return VECTORS_WRONG;
    // Errors are small negative numbers, and if all of them were the same one, OR has
    // kept it. Nothing but EINTR is to be expected.
    return results == 0 ? 0 : -results;
}
