// What Python may ask of the C core. Plain declarations only: this file is read
// by the compiler and by cffi alike. Every function returns a count (0 or more)
// or -errno; none prints, none allocates for the caller.

// One system call that a tracee makes for us; the injected code walks a table
// of these. The layout is known to the machine code in inject.c.
struct remote_call {
    uint64_t number;
    uint64_t arguments[6];
    int64_t result;
};

// Where things lie in the tracee: the injected code, the table it walks, the signal
// frame with the tracee's true registers (see inject.c), what calls point to, and room
// for what they write.
struct workbench {
    uint64_t code;
    uint64_t table;
    uint64_t frame;
    uint64_t arguments;
    uint64_t space;
    uint32_t calls_max;
    int32_t done_signal; // by which the injected code says that it is through
};

// What one of many tasks is to do: `count` calls from the place `first` on, and the
// bytes at `data` that they point to.
struct order {
    int32_t tid;
    uint32_t first;
    uint32_t count;
    uint32_t data;
    uint32_t data_bytes;
};

// user_regs_struct of <sys/user.h>, as 27 words in the kernel's order.
struct task_registers {
    uint64_t words[27];
};

struct rseq_configuration {
    uint64_t pointer;
    uint32_t size;
    uint32_t signature;
    uint32_t flags;
    uint32_t padding;
};

// What ptrace(2) and kcmp(2) tell of a task that it cannot be asked itself.
struct task_facts {
    struct rseq_configuration rseq;
    uint64_t sequence;  // struct rseq's rseq_cs; 0 without a registration
    int32_t dispatches; // whether its system calls are dispatched to itself
    int32_t ports;      // whether it may use I/O ports
    int32_t shares_fs;  // whether it has the leader's root, directory and umask
    int32_t padding;
};

// One descriptor of a process; behind it what its link says, then its fdinfo, then
// nothing up to a multiple of 8.
struct descriptor_row {
    int32_t number;
    uint32_t mode;
    uint32_t link_bytes;
    uint32_t info_bytes;
    uint64_t device;
    uint64_t inode;
    uint64_t special; // st_rdev
};

// What a batch came back with besides its results.
struct batch_outcome {
    uint64_t deferred_signals; // bit n-1: signal n arrived and was held back
    uint32_t clones;           // threads born, written to the caller's array
    int32_t status;            // wait status if the tracee came out elsewhere
};

struct skeleton_plan {
    const char *executable; // path, opened and executed by the owner
    int cgroup;             // directory descriptor, or -1
    int new_pid_namespace;  // 1: an init of its own, ids free to choose
    int pid, pgid, sid;     // as the process itself will see them
    uint32_t uid[3], gid[3]; // real, effective, saved
    const uint32_t *groups;
    uint32_t group_count;
};

struct skeleton_birth {
    int pid;       // in our pid namespace
    int init;      // the init of its pid namespace in ours, or 0
    int go;        // write one byte: it executes; close without: it ends
    int error;     // read end: 4 bytes of errno if the exec failed, else EOF
    int step;      // of enum skeleton_step, if the call failed
};

enum skeleton_step {
    STEP_NONE = 0,
    STEP_PIPE = 1,
    STEP_NAMESPACE = 2,
    STEP_INIT = 3,
    STEP_SESSION = 4,
    STEP_GROUP = 5,
    STEP_PROCESS = 6,
};

int64_t raw_syscall(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                    uint64_t e, uint64_t f);

// ptrace.c
int tracee_seize(int tid, uint64_t options);
int tracee_interrupt(int tid);
int tracee_continue(int tid, int signal);
int tracee_to_syscall(int tid);
int tracee_options(int tid, uint64_t options);
int tracee_detach(int tid, int signal);
int tracee_wait(int tid, int *status);
int tracee_event_message(int tid, uint64_t *message);
int tracees_stop(const int *tids, int count, int *statuses);
int tracee_get_registers(int tid, struct task_registers *registers);
int tracee_set_registers(int tid, const struct task_registers *registers);
int tracee_get_xstate(int tid, void *buffer, uint32_t size);
int tracee_set_xstate(int tid, const void *buffer, uint32_t size);
int tracee_get_mask(int tid, uint64_t *mask);
int tracee_set_mask(int tid, uint64_t mask);
int tracee_get_rseq(int tid, struct rseq_configuration *configuration);
int tracee_peek_signals(int tid, uint64_t offset, int shared, int count, void *infos);
// For each of count tasks: registers, mask and XSAVE image. The image i begins at
// xstates + i * xstate_stride; its true size goes to sizes[i].
int tasks_read(const int *tids, int count, struct task_registers *registers,
               uint64_t *masks, void *xstates, uint32_t xstate_stride,
               uint32_t *sizes);
int tasks_registers(const int *tids, int count, struct task_registers *registers);
// Here the images lie one behind the other.
int tasks_write(const int *tids, int count, const struct task_registers *registers,
                const uint64_t *masks, const void *xstates, const uint32_t *sizes);
// Have each task issue the call that its registers are at, and break it off before it
// sleeps; the registers become those it came back with. -EPROTO: one stopped elsewhere,
// its status is not 0.
int tasks_break_off(const int *tids, int count, struct task_registers *registers,
                    int *statuses);
// Of a stopped thread of the stopped process `pid`.
int task_look(int pid, int tid, struct task_facts *facts);

// inject.c
int inject_step(int tid, uint64_t instruction, struct remote_call *call,
                uint64_t *deferred_signals);
uint32_t inject_code_size(void);
void inject_code(void *destination);
int inject_batch(int pid, int tid, const struct workbench *bench,
                 struct remote_call *calls, uint32_t count, const void *data,
                 uint32_t data_bytes, int *born, uint32_t born_max,
                 struct batch_outcome *outcome);
int inject_questions(int pid, const int *tids, uint32_t tid_count,
                     const struct workbench *bench, const struct remote_call *calls,
                     uint32_t count, const void *data, uint32_t data_bytes,
                     uint32_t space_bytes, void *answers, uint32_t stride,
                     uint32_t together, uint64_t *deferred_signals);
int inject_orders(int pid, const struct order *orders, uint32_t order_count,
                  const struct workbench *bench, struct remote_call *calls,
                  const char *data, uint32_t together, uint64_t *deferred_signals);

// skeleton.c
int skeleton_spawn(const struct skeleton_plan *plan, struct skeleton_birth *birth);

// descriptors.c
// The bytes used of rows; -ENOSPC: there are more. In the order of /proc.
int64_t descriptors_read(int pid, void *rows, uint64_t size);
