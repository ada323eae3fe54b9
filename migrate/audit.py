"""What was decided about whom: one JSON object a line, only ever appended.

No arguments, no environment, no contents: whoever reads the log learns who moved what,
and not what it knew. Lines are in the state directory; a decision that cannot be
written down is not carried out.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from migrate.errors import printable
from migrate.policy import Decision

FILE: Final = "decisions.jsonl"
_VALUE_MAX: Final = 1000  # characters; a path may have 4096, and whatever a peer says


@dataclass(frozen=True, slots=True)
class Audit:
    """The log in one state directory."""

    folder: Path

    def write(self, what: str, decision: Decision, **facts: str | int | None) -> None:
        """Add a line, on disk when this returns.

        Raises:
            OSError: it could not be written.
        """
        now = time.time()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        said = {
            "time": f"{seconds}.{int(now % 1 * 1000):03d}Z",
            "what": what,
            "verdict": "allowed" if decision.allowed else "denied",
            "reason": _short(decision.why),
            **{
                name: _short(value) if isinstance(value, str) else value
                for name, value in facts.items()
            },
        }
        line = json.dumps(said, ensure_ascii=True) + "\n"
        fd = os.open(
            self.folder / FILE,
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        try:
            # One write with O_APPEND: lines of several workers do not mix (open(2)).
            if os.write(fd, line.encode()) != len(line):
                raise OSError(f"{self.folder / FILE} was cut short")
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _VALUE_MAX else shown[: _VALUE_MAX - 1] + "…"
