"""prctl(PR_SET_TIMERSLACK): how much later a thread lets itself be woken.

read from   prctl(PR_GET_TIMERSLACK), made by the thread itself
rebuilt by  prctl(PR_SET_TIMERSLACK), made by the thread itself

Not carried: the default that 0 would reset it to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked, must
from migrate.kernel.telling import nothing, told, told_one
from migrate.kinds.kind import Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch, Remote
    from migrate.kernel.telling import Check
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_SET_TIMERSLACK: Final = 29
_PR_GET_TIMERSLACK: Final = 30


@dataclass(frozen=True, slots=True)
class TimerSlack:
    """What travels."""

    slack_ns: int  # 0: it is scheduled in real time, and has none


KIND = Kind(
    "timer_slack", 1, Scope.TASK, TimerSlack, after=("scheduling",), in_answers=True
)


def refuse(pid: Pid) -> list[str]:
    """There is no slack that cannot be carried."""
    return []


def dump(source: Source, tid: Tid) -> TimerSlack:
    """Ask the thread."""
    return asked(source.remote.on(tid), ask)


def ask(form: Form, batch: Batch) -> Reader[TimerSlack]:
    """Ask together with others."""
    at = batch.add("prctl", _PR_GET_TIMERSLACK, 0, 0, 0, 0)

    def read(results: Sequence[int]) -> TimerSlack:
        return TimerSlack(must(form, "prctl", results[at]))

    return read


def restore(record: TimerSlack, target: Target, tid: Tid) -> None:
    """Set it; a thread without slack has none because of its policy."""
    told(target.remote.on(tid), lambda remote, batch: tell(record, None, remote, batch))


def tell(
    record: TimerSlack, there: TimerSlack | None, remote: Remote, batch: Batch
) -> Check:
    """Tell together with others."""
    slack_ns = record.slack_ns
    if not slack_ns:
        return nothing
    return told_one(remote, batch, "prctl", _PR_SET_TIMERSLACK, slack_ns, 0, 0, 0)
