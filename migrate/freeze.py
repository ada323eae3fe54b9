"""A tree that stands still, as a `with` block: leaving it thaws.

What holds the tree is the cgroup freezer: a ptrace stop ends with the tracer, a frozen
cgroup stays frozen whatever becomes of us (Documentation/admin-guide/cgroup-v2.rst,
cgroup.freeze). ptrace looks at the threads inside.

The order is: ask for the freeze, interrupt all threads, collect their stops. By then
the cgroup is frozen too, and nothing waited for a notification (cgroup.events may come
15 ms late).

A thread in a frozen cgroup makes no injected call. `Frozen.injecting` thaws the cgroup
for that moment: every thread is held by ptrace, so only the one that we let go moves.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from migrate.kernel import cgroups, kcmp, lineage, procfs
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.cgroups import Leaf
from migrate.kernel.remote import Remote
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from migrate.patience import patient
from precopy.errors import KernelError, TaskVanished
from precopy.ids import Pid, Tid

_BIRTHS_MAX: Final = 500
_BIRTH_S: Final = 0.001  # about as long as vfork(2) and execve(2) take
# A thread in uninterruptible sleep may keep it from freezing.
FREEZE_S: Final = patient(2.0)


class DidNotFreeze(Exception):
    """A thread did not stop in time; the tree runs on."""


class BirthUnderWay(Exception):
    """A parent waits in vfork(2) for its child, which has its memory still."""


class Frozen:
    """All threads are stopped: held by the freezer and by ptrace."""

    def __init__(
        self, leaf: Leaf, tracees: Mapping[Pid, Tracee], began_s: float
    ) -> None:
        self.leaf = leaf
        self.tracees = tracees
        self.began_s = began_s  # time.monotonic() when the freeze was asked for
        # What is left of calls that threads sleep in, by process.
        self.timed: dict[Pid, dict[Tid, TimedCall]] = {}
        self.handed_over = False  # from then on leaving the block thaws nothing

    @contextmanager
    def injecting(self) -> Iterator[dict[Pid, Remote]]:
        """Calls made by the stopped leaders; the cgroup is thawed meanwhile."""
        self.leaf.thaw()
        try:
            with ExitStack() as opened:
                yield {
                    pid: opened.enter_context(tracee.remote())
                    for pid, tracee in self.tracees.items()
                }
        finally:
            self.leaf.freeze()

    def kill(self) -> None:
        """End all of them: they live elsewhere by now."""
        self.leaf.kill()
        for tracee in self.tracees.values():
            tracee.reap()


@contextmanager
def own_leaf(root: Pid, name: str) -> Iterator[Leaf]:
    """A cgroup of its own for a tree, below the one that its root lives in.

    What is born in it stays in it. Leaving the block moves all back, unless it is
    frozen for good (in doubt) or gone.

    Raises:
        OSError: no such cgroup can be made; nothing happened.
    """
    leaf = Leaf.create(cgroups.current(root), name)
    try:
        _adopt(leaf, root)
        yield leaf
    finally:
        # Whoever froze it thaws it again, unless it must not run any more.
        if leaf.is_populated() and leaf.is_frozen():
            leaf.close()
        else:
            leaf.dissolve()


def _adopt(leaf: Leaf, root: Pid) -> None:
    """Until nobody is outside: whoever was born outside meanwhile is found again."""
    leaf.adopt(root)
    inside = {root}
    while outside := [r.pid for r in lineage.family(root) if r.pid not in inside]:
        for pid in outside:
            inside.add(pid)
            try:
                leaf.adopt(pid)
            except TaskVanished:
                continue


@contextmanager
def freeze(leaf: Leaf, sleepers: Mapping[Pid, Sleepers]) -> Iterator[Frozen]:
    """Stop all that is in `leaf`; leaving thaws it unless handed over.

    ``sleepers`` are those of the processes that are known; others are found.

    Raises:
        DidNotFreeze: a thread would not stop.
        BirthUnderWay: a moment later it may be over.
        TaskVanished: a process ended just now.
        KernelError: somebody else traces it.
    """
    for one in sleepers.values():
        one.look()
    began_s = time.monotonic()
    leaf.freeze()
    tracees: dict[Pid, Tracee] = {}
    frozen = Frozen(leaf, tracees, began_s)
    try:
        pids = _stopping(leaf, sleepers)
        for pid in pids:
            tracees[pid] = Tracee.seize(pid)
        for pid, tracee in tracees.items():
            own = sleepers.get(pid) or Sleepers(pid)
            # Before anybody reads registers: what arrives must be cured as well.
            frozen.timed[pid] = own.spare(tracee)
        if not leaf.wait_frozen(FREEZE_S):
            raise DidNotFreeze(next(iter(pids)))
        if len(pids) == 1 and leaf.members() != pids:
            raise BirthUnderWay
        yield frozen
    finally:
        for tracee in tracees.values():
            _let_go(tracee)
        if not frozen.handed_over:
            leaf.thaw()


@contextmanager
def freeze_between_births(
    leaf: Leaf, sleepers: Mapping[Pid, Sleepers], wait: Callable[[float], None]
) -> Iterator[Frozen]:
    """What freeze() does, when nobody is in the midst of a birth.

    Until then it runs, and ``wait`` is called; what that raises ends the waiting.

    Raises:
        BirthUnderWay: there is always somebody.
        and what freeze() does.
    """
    with ExitStack() as stack:
        yield _between_births(stack, leaf, sleepers, wait)


def _between_births(
    stack: ExitStack,
    leaf: Leaf,
    sleepers: Mapping[Pid, Sleepers],
    wait: Callable[[float], None],
) -> Frozen:
    for _ in range(_BIRTHS_MAX):
        try:
            return stack.enter_context(freeze(leaf, sleepers))
        except BirthUnderWay:
            wait(_BIRTH_S)
    return stack.enter_context(freeze(leaf, sleepers))


def _stopping(leaf: Leaf, known: Mapping[Pid, Sleepers]) -> tuple[Pid, ...]:
    """All that are in the leaf, of which none will have a child any more."""
    pids = leaf.members()
    if len(pids) == 1 and pids[0] in known:
        return pids  # whoever is alone is looked at again when it stands still
    if not leaf.wait_frozen(FREEZE_S):
        raise DidNotFreeze(pids)
    pids = leaf.members()
    # A parent in vfork(2) cannot be stopped by ptrace while its child is frozen.
    if any(pid not in known and _borrows_memory(pid) for pid in pids):
        raise BirthUnderWay
    return pids


def _borrows_memory(pid: Pid) -> bool:
    """Whether it still has the memory of its parent."""
    try:
        return kcmp.same_memory(pid, procfs.stat(pid).parent)
    except (KernelError, TaskVanished):
        return False


def _let_go(tracee: Tracee) -> None:
    try:
        tracee.detach()
    except TaskVanished:
        return
