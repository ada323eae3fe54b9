// Numbers that live in vector registers only; see vectors.c.

#include <stdint.h>
#include <time.h>

enum {
    VECTORS_REGISTERS_MAX = 32,
    VECTORS_LANES_MAX = 8,
    VECTORS_ROUNDS = 16,  // calls of nanosleep(2) in each stretch
    VECTORS_WRONG = -1,
};

struct vectors {
    uint64_t lanes[VECTORS_REGISTERS_MAX][VECTORS_LANES_MAX];
    uint64_t steps[VECTORS_LANES_MAX];  // what each lane grows by
    struct timespec nap;
    uint32_t masks;  // k1 in the low half, k2 in the high
    uint32_t mxcsr;
    uint16_t x87;  // the control word
};

// The width in bits of the widest registers that this processor has: 128, 256 or 512.
uint32_t vectors_widest(void);

void vectors_init(struct vectors *v);

// Let the numbers grow for a stretch, in registers of `bits`, and check them. Returns 0,
// VECTORS_WRONG, or the errno of a nanosleep(2) that failed.
long vectors_grow(struct vectors *v, uint32_t bits);
