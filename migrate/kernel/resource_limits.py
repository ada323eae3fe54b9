"""The sixteen resource limits of a process, asked and set through itself.

prlimit(2) from outside needs CAP_SYS_RESOURCE for another user's process, so the
process does it with the rights that it has.
"""

import errno
import struct
from collections.abc import Sequence
from typing import Final

from migrate.kernel.asking import Form, Reader, asked, must
from migrate.kernel.remote import Batch, Remote, RemoteError
from migrate.kernel.tasks import Limit

COUNT: Final = 16  # RLIM_NLIMITS, asm-generic/resource.h
_RLIMIT64: Final = struct.Struct("<QQ")


def read(remote: Remote) -> tuple[Limit, ...]:
    """All limits, by their RLIMIT_ number."""
    return asked(remote, ask)


def ask(form: Form, batch: Batch) -> Reader[tuple[Limit, ...]]:
    """What read() does, together with others."""
    table = form.space(_RLIMIT64.size * COUNT)
    places = [
        batch.add("prlimit64", 0, number, 0, table + number * _RLIMIT64.size)
        for number in range(COUNT)
    ]

    def read(results: Sequence[int]) -> tuple[Limit, ...]:
        for at in places:
            must(form, "prlimit64", results[at])
        data = form.read(table, _RLIMIT64.size * COUNT)
        return tuple(Limit(soft, hard) for soft, hard in _RLIMIT64.iter_unpack(data))

    return read


def write(remote: Remote, wanted: dict[int, Limit]) -> set[int]:
    """Set these limits; gives back the numbers of those that need a right.

    Raises:
        RemoteError: one was answered with anything but EPERM.
    """
    batch = remote.batch()
    read = tell(remote, batch, wanted)
    return read(batch.run(check=False))


def tell(remote: Remote, batch: Batch, wanted: dict[int, Limit]) -> Reader[set[int]]:
    """What write() does, together with others."""
    first = len(batch)
    for number, limit in wanted.items():
        batch.add("prlimit64", 0, number, _RLIMIT64.pack(limit.soft, limit.hard), 0)

    def read(results: Sequence[int]) -> set[int]:
        denied = set()
        for at, number in enumerate(wanted, first):
            if results[at] == -errno.EPERM:
                denied.add(number)
            elif results[at] < 0:
                raise RemoteError("prlimit64", remote.pid, -results[at])
        return denied

    return read
