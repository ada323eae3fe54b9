"""Questions that only a task itself can answer, many asked in one stop.

A stop and a batch cost some 60 µs, a call in the batch 0.1 µs. So a kind does not
ask by itself: it adds its questions to a batch, and gives back how the answers are to
be read once the batch has run. Whoever dumps a task asks for all kinds at once.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from migrate.kernel.remote import Batch, Remote, RemoteError

T = TypeVar("T")

# Adds calls to the batch; the results, by the places that add() gave, become a T.
Reader: TypeAlias = Callable[[Sequence[int]], T]
Ask: TypeAlias = Callable[[Remote, Batch], Reader[T]]


def asked(remote: Remote, ask: Ask[T]) -> T:
    """One answer, asked for alone."""
    return asked_together(remote, [ask])[0]


def asked_together(remote: Remote, asks: Sequence[Ask[T]]) -> list[T]:
    """The answers to all questions, in their order, for the price of one stop.

    Raises:
        RemoteError: a call failed that its reader says must not.
    """
    remote.reset()
    batch = remote.batch()
    readers = [ask(remote, batch) for ask in asks]
    results = batch.run(check=False) if len(batch) else []
    return [reader(results) for reader in readers]


def must(remote: Remote, name: str, result: int) -> int:
    """A result that is no error.

    Raises:
        RemoteError: it is.
    """
    # -1 … -4095, as in every system call; brk() and the like give high addresses.
    if -4096 < result < 0:
        raise RemoteError(name, remote.pid, -result)
    return result
