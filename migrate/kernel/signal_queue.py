"""Signals that were sent and not yet delivered: the queue of a thread or of a process.

looked at   PTRACE_PEEKSIGINFO, ptrace(2), and the masks in /proc/PID/status
asked for   rt_sigpending(2): whether both queues are empty
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import Unsaid, must

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch

SIGINFO_BYTES: Final = 128
_SIGNAL_MAX: Final = 64
_QUEUE_MAX: Final = (
    100_000  # what a peer may want; RLIMIT_SIGPENDING does not hold root
)
_SET_BYTES: Final = 8


class NotASiginfo(ValueError):
    """It has another length, names no signal, or is one of too many."""


def pending(status: bytes, field: str) -> int:
    """The mask ``field`` (SigPnd of a thread, ShdPnd of the process) of a status text;
    bit n-1 for signal n.
    """
    found = re.search(rb"^%b:\t([0-9a-f]{16})$" % field.encode(), status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def bare(mask: int, seen: Sequence[bytes]) -> list[bytes]:
    """The siginfo_t of each signal of ``mask`` that has none in the queue.

    A signal that found no memory for its siginfo is only a bit in the mask; on delivery
    the kernel makes up SI_USER with pid 0 (collect_signal()).
    """
    queued = {_number(info) for info in seen}
    return [
        number.to_bytes(SIGINFO_BYTES, "little")
        for number in range(1, _SIGNAL_MAX + 1)
        if mask >> (number - 1) & 1 and number not in queued
    ]


def ask_whether_empty(form: Form, batch: Batch) -> Reader[None]:
    """Ask together with others. The reader raises Unsaid where something is queued."""
    room = form.space(_SET_BYTES)
    at = batch.add("rt_sigpending", room, _SET_BYTES)

    def read(results: Sequence[int]) -> None:
        must(form, "rt_sigpending", results[at])
        # Of the process and of the thread alike; all are blocked in a batch.
        if any(form.read(room, _SET_BYTES)):
            raise Unsaid

    return read


def lacking(wanted: Sequence[bytes], there: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Number and siginfo_t of what is not ``there`` yet, in its order.

    Raises:
        NotASiginfo: one that is wanted is none, or there are too many.
    """
    if len(wanted) > _QUEUE_MAX:
        raise NotASiginfo
    queued = Counter(there)
    found = []
    for info in wanted:
        number = _number(info)
        if len(info) != SIGINFO_BYTES or not 1 <= number <= _SIGNAL_MAX:
            raise NotASiginfo
        if queued[info]:
            queued[info] -= 1
        else:
            found.append((number, info))
    return found


def _number(info: bytes) -> int:
    return int.from_bytes(info[:4], "little")
