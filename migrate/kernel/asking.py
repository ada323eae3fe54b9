"""Questions that only a task itself can answer, many asked in one stop.

A stop and a batch cost some 20 µs, a call in the batch 0.1 µs. So a kind does not ask
by itself: it writes its questions on a form, and says how the answers are to be read.
The form of all kinds is written once and put to any number of tasks, by a loop in C.

What comes back is bytes. Two equal answers are one answer: who has read the first need
not read the second, and can tell without reading which of the questions another answer
differs in. Reading takes longer than asking, and nothing needs to stand still for it.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NewType, TypeAlias, TypeVar, cast

from migrate.kernel._native import ffi
from migrate.kernel.remote import SPACE_BYTES, Batch, Remote, RemoteError, RemotePtr
from precopy.ids import Pid, Tid

T = TypeVar("T")

# All that one task has said to a form.
Answer = NewType("Answer", bytes)

# Reads the results, by the places that add() gave: they become a T.
Reader: TypeAlias = Callable[[Sequence[int]], T]
Ask: TypeAlias = Callable[["Form", Batch], Reader[T]]

_RESULT_BYTES: Final = 8
_ALIGNMENT: Final = 16
# struct task_facts: rseq (pointer, size, signature, flags), sequence, and three more.
_FACTS: Final = struct.Struct("<QIII4xQiii4x")


class Unsaid(Exception):
    """The answer had no room for it: whoever wants to know has to look elsewhere."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a thread cannot be asked itself: ptrace(2) and kcmp(2) tell."""

    rseq: tuple[int, int, int, int] | None  # pointer, size, signature, flags
    sequence: int  # struct rseq's rseq_cs
    dispatches_syscalls: bool  # PR_SET_SYSCALL_USER_DISPATCH; False before Linux 6.4
    has_io_ports: bool  # ioperm(2), iopl(2)
    shares_fs: bool  # the leader's root, working directory and umask are its own


@dataclass(frozen=True, slots=True)
class _Question(Generic[T]):
    """One kind's part of a form: what it reads, and where that lies in an answer."""

    read: Reader[T]
    results: slice
    space: slice
    looks_at_facts: bool


class Form:
    """The questions of several kinds; what an `ask` is handed to write them on.

    Good for every stop in which the workbench lies where it lay when it was written.
    """

    def __init__(self, remote: Remote, asks: Sequence[Ask[object]]) -> None:
        self.pid: Pid = remote.pid
        self.tid: Tid = remote.tid  # whose answer is being read
        self.bench = remote.bench
        self._space_bytes = 0
        self._looks_at_facts = False
        batch = remote.batch()
        written = [self._write(ask, batch) for ask in asks]
        self._calls, self._data = batch.rows()
        self._results_bytes = len(batch) * _RESULT_BYTES
        self._results = struct.Struct(f"<{len(batch)}q")
        self._questions = [
            _Question(
                read,
                slice(first * _RESULT_BYTES, end * _RESULT_BYTES),
                slice(self._results_bytes + begin, self._results_bytes + finish),
                facts,
            )
            for read, (first, end), (begin, finish), facts in written
        ]
        self._answer = Answer(b"")

    def _write(
        self, ask: Ask[object], batch: Batch
    ) -> tuple[Reader[object], tuple[int, int], tuple[int, int], bool]:
        first, begin = len(batch), self._space_bytes
        self._looks_at_facts = False
        read = ask(self, batch)
        calls, room = (first, len(batch)), (begin, self._space_bytes)
        return read, calls, room, self._looks_at_facts

    # What a kind that writes on it may use.

    def space(self, size: int) -> RemotePtr:
        """Room in the workbench for what a call writes; it is zero before."""
        start = -(-self._space_bytes // _ALIGNMENT) * _ALIGNMENT
        if start + size > SPACE_BYTES:
            raise ValueError(f"the workbench has no room for {size} bytes more")
        self._space_bytes = start + size
        return RemotePtr(self.bench.space + start)

    def look_at_facts(self) -> None:
        """Say that the reader is going to ask for `facts`."""
        self._looks_at_facts = True

    # What its reader may use.

    def read(self, pointer: int, size: int) -> bytes:
        """What the task left in the room that space() gave."""
        at = self._results_bytes + pointer - self.bench.space
        return self._answer[at : at + size]

    @property
    def facts(self) -> Facts:
        """What ptrace told."""
        pointer, size, signature, flags, sequence, *modes = _FACTS.unpack(
            self._answer[-_FACTS.size :]
        )
        registered = (pointer, size, signature, flags) if pointer else None
        return Facts(registered, sequence, *map(bool, modes))

    # What whoever puts it may use.

    def put(self, remote: Remote, tids: Sequence[Tid]) -> list[Answer]:
        """Have each of these stopped threads fill it in."""
        answers = remote.run_on_each(tids, self._calls, self._data, self._space_bytes)
        return [Answer(answer) for answer in answers]

    def says(self, tid: Tid, answer: Answer, which: int) -> object:
        """What this task's answer says to the question of this place.

        Raises:
            RemoteError: a call failed that its reader says must not.
            Unsaid: it does not say.
        """
        self.tid, self._answer = tid, answer
        return self._questions[which].read(self._results.unpack_from(answer))

    def differ(self, one: Answer, other: Answer) -> list[int]:
        """The places of the questions that these two answer otherwise."""
        if one == other:
            return []
        facts = slice(len(one) - _FACTS.size, None)
        facts_differ = one[facts] != other[facts]
        return [
            place
            for place, question in enumerate(self._questions)
            if one[question.results] != other[question.results]
            or one[question.space] != other[question.space]
            or (question.looks_at_facts and facts_differ)
        ]


def asked(remote: Remote, ask: Ask[T]) -> T:
    """One answer, asked for alone."""
    return asked_together(remote, [ask])[0]


def asked_together(remote: Remote, asks: Sequence[Ask[T]]) -> list[T]:
    """The answers to all questions, in their order, for the price of one stop.

    Raises:
        RemoteError: a call failed that its reader says must not.
        Unsaid: an answer does not say.
    """
    remote.reset()
    form = Form(remote, asks)
    (answer,) = form.put(remote, [remote.tid])
    return [cast("T", form.says(remote.tid, answer, at)) for at in range(len(asks))]


def must(remote: Remote | Form, name: str, result: int) -> int:
    """A result that is no error.

    Raises:
        RemoteError: it is.
    """
    # -1 … -4095, as in every system call; brk() and the like give high addresses.
    if -4096 < result < 0:
        raise RemoteError(name, remote.pid, -result)
    return result


assert _FACTS.size == ffi.sizeof("struct task_facts")
