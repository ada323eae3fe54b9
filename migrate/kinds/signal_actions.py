"""sigaction(2): what each signal does.

read from   rt_sigaction(n, NULL, …) in the process itself, all in one batch
rebuilt by  rt_sigaction(n, …), all in one batch
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import all_must, told
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid

_SIGNALS: Final = range(1, 65)
_FIXED: Final = frozenset({9, 19})  # SIGKILL and SIGSTOP are what they are
_SETTABLE: Final = tuple(number for number in _SIGNALS if number not in _FIXED)
# The kernel's struct sigaction, not the C library's: handler, flags, restorer, mask.
_ACTION: Final = struct.Struct("<QQQQ")
_MASK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SignalAction:
    """What one signal does; a default action is not listed."""

    signal: int
    handler: int  # an address, or 1: SIG_IGN
    flags: int
    restorer: int
    mask: int


@dataclass(frozen=True, slots=True)
class SignalActions:
    """What travels."""

    actions: tuple[SignalAction, ...]


KIND = Kind("signal_actions", 1, Scope.PROCESS, SignalActions, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """There is no action that cannot be carried."""
    return []


def dump(source: Source) -> SignalActions:
    """Ask the process itself: /proc shows handlers as a mask only."""
    return asked(source.remote, ask)


def ask(form: Form, batch: Batch) -> Reader[SignalActions]:
    """Ask together with others."""
    table = form.space(_ACTION.size * len(_SETTABLE))
    places = [
        batch.add("rt_sigaction", number, 0, table + row * _ACTION.size, _MASK_BYTES)
        for row, number in enumerate(_SETTABLE)
    ]

    def read(results: Sequence[int]) -> SignalActions:
        for at in places:
            must(form, "rt_sigaction", results[at])
        rows = _ACTION.iter_unpack(form.read(table, _ACTION.size * len(_SETTABLE)))
        return SignalActions(
            tuple(
                SignalAction(number, *row)
                for number, row in zip(_SETTABLE, rows, strict=True)
                if any(row)
            )
        )

    return read


def restore(record: SignalActions, target: Target) -> None:
    """Set all of them: those not listed back to the default."""
    told(target.remote, lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: SignalActions, there: SignalActions | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    numbers = [action.signal for action in record.actions]
    if not set(numbers) <= set(_SETTABLE) or len(set(numbers)) != len(numbers):
        raise CannotCarry(KIND.name, "The peer has an action for what is no signal.")
    wanted = {
        action.signal: _ACTION.pack(
            action.handler, action.flags, action.restorer, action.mask
        )
        for action in record.actions
    }
    default = bytes(_ACTION.size)
    return all_must(
        remote,
        batch,
        "rt_sigaction",
        [(number, wanted.get(number, default), 0, _MASK_BYTES) for number in _SETTABLE],
    )
