"""What each bench is: a question, how to measure it, and how to show the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bench.figures import Result
from bench.presentation import Plot, Table
from bench.wanted import Wanted

Tell: TypeAlias = Callable[[str], None]  # one line for who waits


@dataclass(frozen=True, slots=True)
class Measurement:
    """``question`` is a sentence; ``remarks`` say what to know about the answer.

    ``measure`` gives one result for each setting. A result has the keys ``runs`` and
    ``failures`` (a sentence for each run that went wrong); a figure that could not be
    had is None, never missing.
    """

    name: str
    question: str
    remarks: str
    measure: Callable[[Wanted, Tell], list[Result]]
    table: Callable[[Sequence[Result]], Table]
    plots: Callable[[Sequence[Result]], list[Plot]]
