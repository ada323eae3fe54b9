"""The one thread that is allowed to ptrace, and its door from async code.

ptrace(2) obeys only the thread that attached, for as long as it is attached. A
pool would hand each call to whichever thread is idle, so a session gets one OS
thread for its whole life, and everything that traces runs on it. What runs
there is plain synchronous code that has to undo what it did: it is asked to
stop, never abandoned.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event
    from types import TracebackType
    from typing import Self

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


@dataclass(slots=True)
class _Job(Generic[Result]):
    work: Callable[[], Result]
    done: trio.Event
    loop: trio.lowlevel.TrioToken
    results: list[Result]  # one, or none where it raised
    trouble: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self.work())
        except BaseException as error:
            # Whatever it is belongs to the task that waits, KeyboardInterrupt too.
            self.trouble = error
        self.loop.run_sync_soon(self.done.set)

    def result(self) -> Result:
        if self.trouble is None:
            return self.results.pop()
        try:
            raise self.trouble
        finally:
            self.trouble = None  # error → traceback → this frame → job → error


class TracerThread:
    """One OS thread from ``async with`` to its end; ``run`` does a call there."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon, so that a bug that leaves it alive cannot keep the command alive.
        self._thread = Thread(target=self._work, name=name, daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._jobs.put(None)
        # No job is left: each run() waits for its own. This takes microseconds.
        self._thread.join()

    async def run(
        self,
        work: Callable[[*Arguments], Result],
        *arguments: *Arguments,
        cancelled: Event | None = None,
        on_cancel: Callable[[], object] | None = None,
    ) -> Result:
        """``work(*arguments)`` on the tracer thread: what it returns or raises.

        When trio cancels the call, ``cancelled`` is set and ``on_cancel`` is called
        (here, on trio's thread: it has to be quick, and is to wake ``work`` from
        whatever it is blocked in, ``channel.shutdown`` say). Then ``work`` is waited
        for however long it takes; the cancellation is forgotten if it
        returns, as what it did is done, and what it raises is raised.
        """
        job: _Job[Result] = _Job(
            lambda: work(*arguments),
            trio.Event(),
            trio.lowlevel.current_trio_token(),
            [],
        )
        self._jobs.put(job.run)
        try:
            await job.done.wait()
        except trio.Cancelled:
            if cancelled is not None:
                cancelled.set()
            if on_cancel is not None:
                on_cancel()
            with trio.CancelScope(shield=True):
                await job.done.wait()
        return job.result()

    def _work(self) -> None:
        # A signal that the kernel gave to this thread would end a wait4(2) or a
        # recv(2) here with EINTR, and Python handles it on the main thread anyway.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (job := self._jobs.get()) is not None:
            job()
