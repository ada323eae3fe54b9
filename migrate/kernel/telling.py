"""What a task is told to do to itself, by many, in one stop.

The counterpart of asking.py: a kind adds its calls to a batch and gives back what is
to be made of their results. Calls are made in the order in which they were added; one
that fails does not keep the later ones from being made.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from migrate.kernel.asking import must
from migrate.kernel.remote import Batch, Remote

# Looks at the results, by the places that add() gave; raises if one must not be.
Check: TypeAlias = Callable[[Sequence[int]], None]
Tell: TypeAlias = Callable[[Remote, Batch], Check]


def told(remote: Remote, tell: Tell) -> None:
    """Tell one thing alone."""
    told_together(remote, [tell])


def told_together(remote: Remote, tells: Iterable[Tell]) -> None:
    """Tell all, in their order, for the price of one stop; of none, if none has a call.

    Raises:
        RemoteError: a call failed that its check says must not.
    """
    remote.reset()
    batch = remote.batch()
    checks = [tell(remote, batch) for tell in tells]
    results = batch.run(check=False) if len(batch) else []
    for check in checks:
        check(results)


def told_one(remote: Remote, batch: Batch, name: str, *arguments: int | bytes) -> Check:
    """Add one call, which must not fail."""
    at = batch.add(name, *arguments)
    return none_failed(remote, name, at, at + 1)


def all_must(
    remote: Remote, batch: Batch, name: str, calls: Iterable[Sequence[int | bytes]]
) -> Check:
    """Add the call once for each row of arguments; none may fail."""
    first = len(batch)
    for arguments in calls:
        batch.add(name, *arguments)
    return none_failed(remote, name, first, len(batch))


def none_failed(remote: Remote, name: str, first: int, end: int) -> Check:
    """The check that none of the calls from ``first`` up to ``end`` failed."""

    def check(results: Sequence[int]) -> None:
        for result in results[first:end]:
            must(remote, name, result)

    return check


def nothing(results: Sequence[int]) -> None:
    """The check of what needs no call."""
