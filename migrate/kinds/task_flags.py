"""prctl(2): the switches that belong to one thread.

read from   prctl(PR_GET_…) and arch_prctl(ARCH_GET_CPUID), made by the thread itself
rebuilt by  prctl(PR_SET_…) and arch_prctl(ARCH_SET_CPUID), made by the thread itself

These are: how it learns of broken memory (PR_MCE_KILL), whether it may read the time
stamp counter and the processor's identity, whether it is a flusher of blocks
(PR_SET_IO_FLUSHER), and what it wants done against speculation.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from migrate.kernel.asking import asked
from migrate.kinds.kind import CannotCarry, Kind, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from migrate.kernel.asking import Form, Reader
    from migrate.kernel.remote import Batch
    from migrate.kinds.kind import Source, Target
    from precopy.ids import Pid, Tid

_PR_GET_TSC: Final = 25
_PR_SET_TSC: Final = 26
_PR_MCE_KILL: Final = 33
_PR_MCE_KILL_GET: Final = 34
_MCE_KILL_CLEAR: Final = 0
_MCE_KILL_SET: Final = 1
_MCE_KILL_DEFAULT: Final = 2
_PR_GET_SPECULATION_CTRL: Final = 52
_PR_SET_SPECULATION_CTRL: Final = 53
_MISFEATURES: Final = (0, 1, 2)  # store bypass, indirect branch, L1D flush
_SPEC_PRCTL: Final = 1  # the thread may choose
_SPEC_CHOICES: Final = 0x1E  # PR_SPEC_ENABLE … PR_SPEC_DISABLE_NOEXEC
_PR_SET_IO_FLUSHER: Final = 57
_PR_GET_IO_FLUSHER: Final = 58
_ARCH_GET_CPUID: Final = 0x1011
_ARCH_SET_CPUID: Final = 0x1012
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskFlags:
    """What travels."""

    tsc: int  # PR_TSC_ENABLE or PR_TSC_SIGSEGV
    cpuid: bool  # False: cpuid raises SIGSEGV
    mce_kill: int  # PR_MCE_KILL_LATE, _EARLY or _DEFAULT
    io_flusher: bool
    speculation: tuple[int, int, int]  # PR_SPEC_… of each; 0: it may not choose


KIND = Kind("task_flags", 1, Scope.TASK, TaskFlags, in_answers=True)


def refuse(pid: Pid) -> list[str]:
    """/proc does not tell all of them."""
    return []


def dump(source: Source, tid: Tid) -> TaskFlags:
    """Ask for all in one stop."""
    return asked(source.remote.on(tid), ask)


def restore(record: TaskFlags, target: Target, tid: Tid) -> None:
    """Set those that differ.

    Raises:
        CannotCarry: one cannot be set there.
    """
    remote = target.remote.on(tid)
    there = asked(remote, ask)
    if record == there:
        return
    batch = remote.batch()
    names = []
    if record.tsc != there.tsc:
        names.append("PR_SET_TSC")
        batch.add("prctl", _PR_SET_TSC, record.tsc, 0, 0, 0)
    if record.cpuid != there.cpuid:
        names.append("ARCH_SET_CPUID")
        batch.add("arch_prctl", _ARCH_SET_CPUID, int(record.cpuid))
    if record.mce_kill != there.mce_kill:
        names.append("PR_MCE_KILL")
        default = record.mce_kill == _MCE_KILL_DEFAULT
        how = _MCE_KILL_CLEAR if default else _MCE_KILL_SET
        value = 0 if default else record.mce_kill
        batch.add("prctl", _PR_MCE_KILL, how, value, 0, 0)
    if record.io_flusher != there.io_flusher:
        names.append("PR_SET_IO_FLUSHER")
        batch.add("prctl", _PR_SET_IO_FLUSHER, int(record.io_flusher), 0, 0, 0)
    for misfeature in _MISFEATURES:
        choice = record.speculation[misfeature]
        if choice != there.speculation[misfeature]:
            names.append(f"speculation {misfeature}")
            if choice:
                batch.add("prctl", _PR_SET_SPECULATION_CTRL, misfeature, choice, 0, 0)
            else:
                # The source's processor had no choice to offer; leave this one's.
                names.pop()
    _judge(dict(zip(names, batch.run(check=False), strict=True)), tid)


def _judge(results: dict[str, int], tid: Tid) -> None:
    for name, result in results.items():
        if result >= 0:
            continue
        if name.startswith("speculation") or name == "PR_SET_IO_FLUSHER":
            # What the processor here is not prone to, or a favour that needs a
            # right: the thread goes on without.
            _log.warning(
                "thread %d: %s cannot be set here: %s",
                tid,
                name,
                errno.errorcode.get(-result, -result),
            )
            continue
        raise CannotCarry(
            KIND.name,
            f"Thread {tid} has used {name}, which the destination answers with "
            f"{errno.errorcode.get(-result, -result)}.",
        )


def ask(form: Form, batch: Batch) -> Reader[TaskFlags]:
    """Ask together with others."""
    tsc = form.space(4)
    first = batch.add("prctl", _PR_GET_TSC, tsc, 0, 0, 0)
    batch.add("arch_prctl", _ARCH_GET_CPUID, 0)
    batch.add("prctl", _PR_MCE_KILL_GET, 0, 0, 0, 0)
    batch.add("prctl", _PR_GET_IO_FLUSHER, 0, 0, 0, 0)
    for misfeature in _MISFEATURES:
        batch.add("prctl", _PR_GET_SPECULATION_CTRL, misfeature, 0, 0, 0)

    def read(results: Sequence[int]) -> TaskFlags:
        # A negative one is a switch that this kernel, or its caller, does not have.
        _, cpuid, mce_kill, io_flusher, *speculation = results[first : first + 7]
        bypass, branch, flush = (
            value & _SPEC_CHOICES if value > 0 and value & _SPEC_PRCTL else 0
            for value in speculation
        )
        return TaskFlags(
            tsc=int.from_bytes(form.read(tsc, 4), "little"),
            cpuid=cpuid != 0,
            mce_kill=mce_kill if mce_kill >= 0 else _MCE_KILL_DEFAULT,
            io_flusher=io_flusher == 1,
            speculation=(bypass, branch, flush),
        )

    return read
