"""Processes that stand frozen in a cgroup of ours of which no journal speaks.

That is a departure whose journal was lost: a state directory that was deleted, or is
another than it was. Nobody can say whether it was handed over, so it counts as handed
over, and nothing here thaws it. An operator has to know of it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from migrate.kernel import cgroups, procfs
from migrate.state_directory import Side, StateDirectory, pid_namespace
from precopy.errors import TaskVanished
from precopy.ids import Pid

_DEPARTURE: Final = re.compile(r"migrate-departure-(\d+)-(\d+)-(\d+)-[0-9a-z]+")


@dataclass(frozen=True, slots=True)
class Orphan:
    """One such cgroup."""

    leaf: str
    pids: tuple[Pid, ...]


def orphans(state: StateDirectory) -> Iterator[Orphan]:
    """Each of them in our pid namespace."""
    known = {leaf for side in Side for leaf in _leaves(state, side)}
    for path in tuple(cgroups.leaves()):
        if _has_no_mover(path) and path not in known:
            yield from _frozen(path)


def _leaves(state: StateDirectory, side: Side) -> Iterator[str]:
    for name in state.names(side):
        try:
            record, _ = state.look(side, name)
        except FileNotFoundError:
            continue
        if record is not None:
            yield os.fsdecode(record.leaf)


def _has_no_mover(path: str) -> bool:
    """Whether it is a departure's, and the command that made it has died."""
    named = _DEPARTURE.fullmatch(path.rpartition("/")[2])
    if named is None or int(named[1]) != pid_namespace():
        return False
    try:
        mover = procfs.stat(Pid(int(named[2])))
    except TaskVanished:
        return True
    return mover.start_time_ticks != int(named[3]) or mover.state in "ZX"


def _frozen(path: str) -> Iterator[Orphan]:
    try:
        with closing(cgroups.Leaf(path)) as leaf:
            if leaf.is_frozen() and (pids := leaf.members()):
                yield Orphan(path, pids)
    except FileNotFoundError:
        return  # it was dissolved meanwhile
