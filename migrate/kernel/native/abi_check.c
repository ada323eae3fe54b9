// What this core claims about the kernel's structures, checked by the compiler.

#define _GNU_SOURCE
#include <linux/ptrace.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

#include "api.h"

_Static_assert(sizeof(struct remote_call) == 64, "the injected code steps by 64");
_Static_assert(offsetof(struct remote_call, arguments) == 8, "arguments at 8");
_Static_assert(offsetof(struct remote_call, result) == 56, "result at 56");
_Static_assert(sizeof(struct task_registers) == sizeof(struct user_regs_struct),
               "27 words of user_regs_struct");
_Static_assert(offsetof(struct user_regs_struct, orig_rax) == 15 * 8, "orig_rax");
_Static_assert(offsetof(struct user_regs_struct, rip) == 16 * 8, "rip");
_Static_assert(offsetof(struct user_regs_struct, rsp) == 19 * 8, "rsp");
_Static_assert(offsetof(struct user_regs_struct, fs_base) == 21 * 8, "fs_base");
_Static_assert(sizeof(struct rseq_configuration) ==
                   sizeof(struct ptrace_rseq_configuration),
               "PTRACE_GET_RSEQ_CONFIGURATION");
