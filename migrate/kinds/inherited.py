"""An open file description that another process of the tree has as well.

It is inherited by fork(2), or was passed. Whoever comes first in the tree tells what it
is; the others only say whose it is, and get it from there.

read from   kcmp(2), between the processes of the tree
rebuilt by  SCM_RIGHTS, through us                              unix(7)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.kernel import fd_passing, kcmp
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.procfs import FdView
    from migrate.kernel.remote import RemoteFd
    from migrate.kinds.kind import Source, Target


@dataclass(frozen=True, slots=True)
class Inherited:
    """What travels: a descriptor of an earlier process that stands for the same."""

    process: int  # its index in the tree
    number: int


KIND = Kind("inherited", 1, Scope.DESCRIPTOR, Inherited, leans=True)


def claims(view: FdView) -> bool:
    """Nobody sees it by looking at one descriptor; the table of descriptors does."""
    return False


def refuse(view: FdView) -> str | None:
    """Nothing: who has it first is asked."""
    return None


def dump(process: Source, view: FdView) -> Inherited:
    """Who has it first."""
    assert process.kin is not None
    return Inherited(*process.kin.inherited[view.number])


def restore(record: Inherited, target: Target) -> RemoteFd:
    """Get it from there."""
    return restore_many([record], target)[0]


def restore_many(records: Sequence[Inherited], target: Target) -> list[RemoteFd]:
    """Get all of them, as they are there now."""
    ours: list[int] = []
    try:
        for record in records:
            elder = target.elder(record.process)
            ours.append(elder.pidfd.getfd(record.number))
        return fd_passing.give(target.remote, target.pidfd, ours)
    finally:
        for fd in ours:
            os.close(fd)


def update(old: Inherited, new: Inherited, target: Target, fd: RemoteFd) -> bool:
    """Whether it is the very same still."""
    elder = target.elder(new.process)
    if new.number < 0:
        raise CannotCarry(KIND.name, "The peer sent a number that is none.")
    return kcmp.order_files(target.pid, fd, elder.pid, new.number) == 0
