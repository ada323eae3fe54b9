"""A Python program under observation: it says when it is ready, and answers."""

import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from precopy.ids import Pid

# Arranges what the test asks for, says so, then answers each line with it.
_PROGRAM: Final = """\
import os, signal, sys, threading
arranged = dict(globals())
exec(sys.argv[1], arranged)
print("ready", flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


class NotArranged(Exception):
    """The program did not get as far as being ready."""


class Victim:
    """The program, running."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.pid = Pid(child.pid)

    def answers(self) -> bool:
        """Whether it runs: asked something, it answers."""
        self.ask()
        return self.has_answered(within_s=10)

    def ask(self) -> None:
        """Ask it something and do not wait."""
        assert self.child.stdin is not None
        self.child.stdin.write("ping\n")
        self.child.stdin.flush()

    def has_answered(self, within_s: float = 0) -> bool:
        """Whether an answer is there; takes it."""
        out = self.child.stdout
        assert out is not None
        return bool(select.select([out], [], [], within_s)[0]) and bool(out.readline())


@contextmanager
def running(
    arrange: str = "", command: Sequence[str] = (), **options: object
) -> Iterator[Victim]:
    """A program that has run ``arrange``; it is dead afterwards.

    ``command`` stands before it (``setpriv …``); ``options`` go to Popen.

    Raises:
        NotArranged: it failed; its stderr says at what.
    """
    child = subprocess.Popen(
        [*command, sys.executable, "-c", _PROGRAM, arrange],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        **options,  # type: ignore[call-overload]
    )
    try:
        assert child.stdout is not None
        if (line := child.stdout.readline()) != "ready\n":
            raise NotArranged(line)
        yield Victim(child)
    finally:
        child.kill()
        child.communicate()
