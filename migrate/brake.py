"""Slowing a process down, so that it writes less than the link carries.

It is stopped for a share of the time, in short pauses that the kernel ends if we die:
a ptrace stop, not a frozen cgroup, which would outlive us. Each pause is like every
other stop of ours: calls that it would break off with EINTR are cured first of all.

A thread of its own does it, since rounds are being sent meanwhile. Whoever needs it to
stand still for a moment asks here as well: two cannot hold it at once.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Final, Self

from migrate.kernel.sleepers import Sleepers
from migrate.kernel.tracee import Tracee
from precopy.errors import TaskVanished
from precopy.ids import Pid

STEPS: Final = (0.2, 0.4, 0.6, 0.8)  # shares of the time in which it stands still
# One pause and what follows it: no pause is longer than 20 ms, but for waking
# up, unless to stop all threads takes that long.
PERIOD_S: Final = 0.024


class Brake:
    """Holds a process back by steps; a context manager, leaving releases it.

    ``sleepers`` is nobody else's while the brake is on or the process held.
    """

    def __init__(self, pid: Pid, sleepers: Sleepers) -> None:
        self._pid = pid
        self._sleepers = sleepers
        self._step = 0
        self._paused_s = 0.0
        self._told_s = 0.0
        self._released = Event()
        self._holding = Lock()
        self._thread: Thread | None = None
        self._trouble: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def share(self) -> float:
        """Of the time, that it stands still."""
        return STEPS[self._step - 1] if self._step else 0.0

    def harder(self) -> bool:
        """The next step; False if there is none, and all stays as it is."""
        if self._step == len(STEPS):
            return False
        self._step += 1
        if self._thread is None:
            self._thread = Thread(target=self._work, name="brake", daemon=True)
            self._thread.start()
        return True

    def pause_s(self) -> float:
        """How long it was stopped since this was last asked.

        Raises:
            TaskVanished: it has ended.
            KernelError: it could not be stopped; somebody else traces it.
        """
        if self._trouble is not None:
            raise self._trouble
        paused_s = self._paused_s
        since_s, self._told_s = paused_s - self._told_s, paused_s
        return since_s

    def release(self) -> None:
        """Let it run; it does when this returns."""
        self._released.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def holding(self) -> Iterator[Tracee]:
        """The process stands still in this block, whose length counts as a pause.

        From any thread; no block of this kind within another.

        Raises:
            TaskVanished: it has ended.
            KernelError: it could not be stopped; somebody else traces it.
        """
        with self._holding:
            self._sleepers.look()
            began_s = time.monotonic()
            tracee = Tracee.seize(self._pid)
            try:
                self._sleepers.spare(tracee)
                yield tracee
            finally:
                tracee.detach()
                self._paused_s += time.monotonic() - began_s

    def _work(self) -> None:
        try:
            while not self._released.is_set():
                began_s = time.monotonic()
                with self.holding():
                    ends_s = began_s + self.share * PERIOD_S
                    self._released.wait(max(0.0, ends_s - time.monotonic()))
                paused_s = time.monotonic() - began_s
                self._released.wait(paused_s * (1 - self.share) / self.share)
        except BaseException as error:
            # Whatever it is belongs to the thread that asks for the pauses.
            self._trouble = error


class Brakes:
    """Those of a tree, which is held back by the same share in each process.

    Each is the caller's; one that comes late is as hard as the others.
    """

    def __init__(self) -> None:
        self._all: dict[Pid, Brake] = {}
        self._steps = 0

    def add(self, pid: Pid, brake: Brake) -> None:
        """One more process, or a process in a new life."""
        self._all[pid] = brake
        for _ in range(self._steps):
            brake.harder()

    def drop(self, pid: Pid) -> None:
        """A process has ended."""
        self._all.pop(pid).release()

    @property
    def share(self) -> float:
        """Of the time, that each stands still."""
        return STEPS[self._steps - 1] if self._steps else 0.0

    def harder(self) -> bool:
        """The next step; False if there is none, and all stays as it is."""
        if self._steps == len(STEPS):
            return False
        self._steps += 1
        for brake in self._all.values():
            brake.harder()
        return True

    def pause_s(self) -> float:
        """How long the one that was stopped longest was, since this was last asked.

        Raises:
            KernelError: one could not be stopped; somebody else traces it.
        """
        longest_s = 0.0
        for brake in self._all.values():
            try:
                longest_s = max(longest_s, brake.pause_s())
            except TaskVanished:
                continue  # whoever looks at its memory finds out
        return longest_s

    def release(self) -> None:
        """Let all run; they do when this returns."""
        for brake in self._all.values():
            brake.release()
