"""Who in a tree shares which open file descriptions: inherited, or passed.

Two descriptors that look alike may be two descriptions of one file, or one: kcmp(2)
tells. Whoever comes first in the tree tells of a description; all others lean on it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

from migrate.kernel import kcmp
from migrate.kernel.procfs import FdView
from migrate.kinds.kind import Kin
from precopy.errors import KernelError

_Look: TypeAlias = tuple[str, int, int]


def of_tree(tables: Sequence[tuple[FdView, ...]]) -> list[Kin | None]:
    """For each process what it has of others; None where all are one process.

    ``tables`` are in the order of the tree, empty where a process has ended.
    """
    if sum(bool(table) for table in tables) < 2:
        return [None] * len(tables)
    everybody = tuple(tables)
    firsts: defaultdict[_Look, list[tuple[int, FdView]]] = defaultdict(list)
    found: list[Kin | None] = []
    for index, table in enumerate(tables):
        inherited: dict[int, tuple[int, int]] = {}
        own: list[tuple[_Look, FdView]] = []
        for view in table:
            look = view.link, view.device, view.inode
            first = next((f for f in firsts[look] if _same(f[1], view)), None)
            if first is None:
                own.append((look, view))
            else:
                inherited[view.number] = first[0], first[1].number
        for look, view in own:
            firsts[look].append((index, view))
        found.append(Kin(index, everybody, inherited))
    return found


def _same(one: FdView, other: FdView) -> bool:
    try:
        return kcmp.order_files(one.pid, one.number, other.pid, other.number) == 0
    except KernelError:
        return False  # closed meanwhile: it is looked at again in the freeze
