"""Places at which a test may have this program die, fail or wait. Else nothing.

MIGRATE_FAILPOINTS names them when the program starts: ``NAME=FAULT``, several with
commas between. FAULT is ``kill`` (SIGKILL to ourselves), ``raise``, ``hang``, the name
of an errno such as ``EIO``, or ``tell:PATH``: connect to the unix socket there, say the
name, and go on once the other end has closed. ``@FILE`` instead: what is in that file
when the program starts, so that a service can arm what it starts later. Without the
variable each place is a call of a function that is empty.
"""

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

VARIABLE: Final = "MIGRATE_FAILPOINTS"


class Injected(Exception):
    """A test asked for it."""


def _nothing(name: str) -> None:
    """Go on."""


def _armed(faults: dict[str, str]) -> Callable[[str], None]:
    def reach(name: str) -> None:
        fault = faults.get(name)
        if fault is not None:
            _suffer(name, fault)

    return reach


def _suffer(name: str, fault: str) -> None:
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise Injected(name)
        case "hang":
            while True:
                signal.pause()
        case told if told.startswith("tell:"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.connect(told.removeprefix("tell:"))
                listener.sendall(name.encode())
                listener.recv(1)
        case _:
            number = getattr(errno, fault)
            raise OSError(number, os.strerror(number))


def _parsed(text: str) -> dict[str, str]:
    if text.startswith("@"):
        text = Path(text[1:]).read_text()
    pairs = (item.partition("=") for item in text.split(",") if item)
    return {name: fault for name, _, fault in pairs}


reach: Final = (
    _armed(_parsed(os.environ[VARIABLE])) if os.environ.get(VARIABLE) else _nothing
)
