"""Whether a user may look into a process: the kernel is asked, as that user.

What ptrace(2) calls "Ptrace access mode checking" depends on ids, capabilities, whether
the process is dumpable, and security modules. So nothing of it is repeated here: a
child of ours becomes the user and reads a link in /proc/PID that the kernel shows to
nobody else (PTRACE_MODE_READ_FSCREDS, proc_pid_exe(5)).
"""

import errno
import os
import signal
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from migrate.errors import Reason
from precopy.ids import Pid

_NUMBER: Final = struct.Struct("=i")
# Nobody is there; who asks hears of that from somebody else, better.
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ESRCH})


class Caller:
    """A user, for questions. Owns the child that asks them."""

    def __init__(self, uid: int, gid: int) -> None:
        """Have a child with these ids and no other right; no thread may be there yet.

        Raises:
            OSError: it could not be had.
        """
        self.uid: Final = uid
        theirs, self._asks = os.pipe()
        self._hears, tells = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._asks)
            os.close(self._hears)
            _answer(uid, gid, theirs, tells)
        os.close(theirs)
        os.close(tells)

    def may_look_into(self, pid: Pid) -> bool:
        """Whether this user could trace it, as it is now."""
        try:
            os.write(self._asks, _NUMBER.pack(pid))
        except BrokenPipeError:
            return False  # whoever asks for us is gone
        answer = os.read(self._hears, _NUMBER.size)
        if len(answer) != _NUMBER.size:
            return False
        (error,) = _NUMBER.unpack(answer)
        return error == 0 or error in _NOT_THERE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._asks)
        os.close(self._hears)
        os.waitpid(self._child, 0)


def not_to_be_looked_into(caller: Caller | None, pids: Iterable[Pid]) -> list[Reason]:
    """Those that are not the caller's to move; None is root, to whom all are."""
    if caller is None:
        return []
    return [
        Reason(
            "owner",
            f"pid {pid} is not one that uid {caller.uid} could trace (ptrace(2)): it "
            "is another user's, or may not be looked into by its own. Ask root.",
            pid,
        )
        for pid in pids
        if not caller.may_look_into(pid)
    ]


def _answer(uid: int, gid: int, asked: int, tells: int) -> None:
    """The child, to its end. It inherits nothing that it could pass on."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        while len(question := os.read(asked, _NUMBER.size)) == _NUMBER.size:
            (pid,) = _NUMBER.unpack(question)
            os.write(tells, _NUMBER.pack(_error_of_looking_into(pid)))
        code = 0
    finally:
        os._exit(code)


def _error_of_looking_into(pid: int) -> int:
    try:
        os.readlink(f"/proc/{pid}/exe")
    except OSError as error:
        return error.errno or errno.EIO
    return 0
