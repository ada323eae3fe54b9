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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from migrate.kernel import cgroups
from migrate.kernel.blocked_syscalls import TimedCall
from migrate.kernel.cgroups import Leaf
from migrate.kernel.remote import Remote
from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid

FREEZE_S: Final = 2.0  # a thread in uninterruptible sleep may keep it from freezing


class DidNotFreeze(Exception):
    """A thread did not stop in time; the tree runs on."""


class Frozen:
    """All threads are stopped: held by the freezer and by ptrace."""

    def __init__(self, leaf: Leaf, tracee: Tracee, began_s: float) -> None:
        self.leaf = leaf
        self.tracee = tracee
        self.began_s = began_s  # time.monotonic() when the freeze was asked for
        self.timed: dict[Tid, TimedCall] = {}  # what is left of calls they sleep in
        self.handed_over = False  # from then on leaving the block thaws nothing

    @contextmanager
    def injecting(self) -> Iterator[Remote]:
        """Calls made by the stopped leader; the cgroup is thawed meanwhile."""
        self.leaf.thaw()
        try:
            with self.tracee.remote() as remote:
                yield remote
        finally:
            self.leaf.freeze()


@contextmanager
def own_leaf(pid: Pid, name: str) -> Iterator[Leaf]:
    """A cgroup of its own for the process, below the one that it lives in.

    Leaving the block moves it back, unless it is frozen for good (in doubt) or gone.

    Raises:
        OSError: no such cgroup can be made; nothing happened.
    """
    leaf = Leaf.create(cgroups.current(pid), name)
    try:
        leaf.adopt(pid)
        yield leaf
    finally:
        # Whoever froze it thaws it again, unless it must not run any more.
        if leaf.is_populated() and leaf.is_frozen():
            leaf.close()
        else:
            leaf.dissolve()


@contextmanager
def freeze(leaf: Leaf, pid: Pid, sleepers: Sleepers) -> Iterator[Frozen]:
    """Stop the process, which is in `leaf`; leaving thaws it unless handed over.

    Raises:
        DidNotFreeze: a thread would not stop.
        TaskVanished: it ended.
        KernelError: somebody else traces it.
    """
    sleepers.look()
    began_s = time.monotonic()
    leaf.freeze()
    try:
        tracee = Tracee.seize(pid)
    except BaseException:
        leaf.thaw()
        raise
    frozen = Frozen(leaf, tracee, began_s)
    try:
        # Before anybody reads registers: what arrives must be cured as well.
        frozen.timed = sleepers.spare(tracee)
        if not leaf.wait_frozen(FREEZE_S):
            raise DidNotFreeze(pid)
        yield frozen
    finally:
        _let_go(tracee)
        if not frozen.handed_over:
            leaf.thaw()


def _let_go(tracee: Tracee) -> None:
    try:
        tracee.detach()
    except TaskVanished:
        return
