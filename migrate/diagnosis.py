"""What an error in a departure means for whoever asked for it."""

import errno
import signal
from collections.abc import Iterable
from typing import Final

from migrate.errors import (
    MigrateError,
    Reason,
    Refused,
    RefusedByDestination,
    RolledBack,
    TargetEnded,
)
from migrate.freeze import BirthUnderWay, DidNotFreeze
from migrate.kernel import procfs
from migrate.kinds.kind import CannotCarry
from precopy.errors import GuardRegions, KernelError, TaskVanished
from precopy.ids import Pid
from transport import messages as m
from transport.channel import PeerGaveUp
from transport.errors import ConnectionLost, RemoteProtocolError

_PF_EXITING: Final = 0x00000004  # include/linux/sched.h


def of(error: Exception, pid: Pid, *, offered: bool) -> MigrateError | None:
    """The outcome that an error before the hand-over stands for; None: a bug of ours.

    ``offered``: the destination has accepted the process.
    """
    match error:
        case TaskVanished():
            return _vanished(pid)
        case OSError(errno=errno.ESRCH) if _has_ended(pid):
            # It was killed where it stood still, in the middle of a look at it.
            return _vanished(pid)
        case PeerGaveUp(message=m.Refused()):
            return RefusedByDestination(
                "The destination refused it.", reasons=_heard(error.reasons)
            )
        case PeerGaveUp():
            said = str(error).removesuffix(".")
            return RolledBack(
                f"The destination gave up: {said}.", reasons=_heard(error.reasons)
            )
        case ConnectionLost() | RemoteProtocolError():
            return RolledBack(
                f"The connection failed: {error}.", way_out="Start the move again."
            )
        case CannotCarry() if not offered:
            reason = Reason(error.kind, error.message, error.pid, error.fd)
            return Refused("It cannot go.", reasons=[reason])
        case CannotCarry():
            return RolledBack(f"Something came up that cannot go: {error.message}")
        case GuardRegions():
            return RolledBack(f"Something came up that cannot go: {error}.")
        case BirthUnderWay():
            return RolledBack(
                "It was starting a child each time that it was to stand still.",
                way_out="Start the move again.",
            )
        case DidNotFreeze():
            return RolledBack("A thread of it would not stop.")
        case KernelError() if not offered:
            reason = Reason("kernel", f"{error}: it cannot be traced.", pid)
            return Refused("It cannot go.", reasons=[reason])
        case OSError():
            return RolledBack(f"The kernel refused: {error}.")
    return None


def _has_ended(pid: Pid) -> bool:
    """Whether it is gone, or will be: a large one takes a while to end."""
    try:
        status, stat = procfs.status(pid), procfs.stat(pid)
    except TaskVanished:
        return True
    is_killed = status.signals.pending & 1 << signal.SIGKILL - 1
    return stat.state in "ZX" or bool(is_killed or stat.flags & _PF_EXITING)


def _vanished(pid: Pid) -> MigrateError:
    if not _has_ended(pid):
        return RolledBack(
            "The process executed another program meanwhile.",
            way_out="Start the move again.",
        )
    return TargetEnded(f"Process {pid} ended by itself during the move.")


def _heard(reasons: Iterable[m.Reason]) -> list[Reason]:
    return [Reason(r.kind, r.message, r.pid, r.fd) for r in reasons]
