"""The process that moves one away for a user of this host: started by the agent.

It is root, and what it does is what the user asked for, to processes that he could
trace himself: seen to before anything is looked at, once they are traced and their
numbers cannot pass on, and once more when they stand still.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from threading import Thread
from typing import Final

from migrate import control
from migrate.caller import Caller
from migrate.errors import Outcome

_HEAR_S: Final = 10.0


def main(arguments: Sequence[str]) -> int:
    """Do what is asked on an inherited socket, ``--socket-fd N``; the exit code."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    number = int(given["--socket-fd"])
    os.set_inheritable(number, False)
    with socket.socket(fileno=number) as link:
        link.settimeout(_HEAR_S)
        try:
            question = control.hear(link)
        except (control.NoQuestion, OSError) as error:
            _log_refusal(error)
            control.answer(link, Outcome.WRONG_ARGUMENTS.exit_code)
            return Outcome.WRONG_ARGUMENTS.exit_code
        link.settimeout(None)
        # Before there is a thread: it forks.
        with Caller(question.uid, question.gid) as caller:
            code = _move(link, question, caller)
        control.answer(link, code)
    return code


def _log_refusal(error: Exception) -> None:
    from migrate import logs

    logs.start(verbose=False).warning("not understood", why=str(error))


def _move(link: socket.socket, question: control.Question, caller: Caller) -> int:
    """From here on stdout and stderr are the user's."""
    from migrate import source
    from migrate.cli import Move

    for fd, ours in ((question.stdout, 1), (question.stderr, 2)):
        os.dup2(fd, ours)
        os.close(fd)
    Thread(target=_obey, args=(link,), daemon=True).start()
    code = Move(question.asked, partial(source.depart, caller=caller)).run()
    # He may go now: that is no objection any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _obey(link: socket.socket) -> None:
    """An objection is what Ctrl-C is to the command."""
    control.wait_for_objection(link)
    os.kill(os.getpid(), signal.SIGINT)
