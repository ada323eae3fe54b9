"""What a move says while it is under way: a bar, JSON lines, or nothing.

Called from the tracer thread; every implementation may be called from any.
None may take time once ``freezing`` was said: the process stands still.
"""

from __future__ import annotations

import json
import sys
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from migrate.errors import printable
from migrate.options import ProgressStyle
from migrate.report import seconds, size

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar

    from precopy.rounds import RoundRecord


class Progress(Protocol):
    """Somebody who wants to know how far a move has come."""

    @property
    def handover_began(self) -> Event:
        """Set by ``handing_over``."""

    def preparing(self, text: str) -> None:
        """Before the first round: ``text`` says what is being done."""

    def round_started(self, number: int, pages: int) -> None:
        """Round ``number`` (from 1) begins, with ``pages`` to send."""

    def round_progress(self, pages_done: int, rate: float) -> None:
        """So many pages of this round are sent; ``rate`` in bytes per second."""

    def round_ended(
        self, record: RoundRecord, estimate_s: float, limit_s: float
    ) -> None:
        """A round is over; a freeze now would be ``estimate_s`` of downtime."""

    def slowing_down(self, share: float) -> None:
        """From here the process is made to stand still for this share of the time."""

    def freezing(self) -> None:
        """The freeze begins: nothing may compete with it."""

    def handing_over(self) -> None:
        """Go is about to leave: from here nobody can call it off."""

    @property
    def doubt_began(self) -> Event:
        """Set by ``in_doubt``."""

    def in_doubt(self, text: str) -> None:
        """The answer to the hand-over was lost, and is asked for; ``text`` says it."""

    def arrived(self) -> None:
        """The process runs at the destination."""

    def close(self) -> None:
        """The move has ended, well or not: leave the terminal tidy."""


class SilentProgress:
    """Says nothing; the others say what they have to on top of it."""

    def __init__(self) -> None:
        self.handover_began = Event()
        self.doubt_began = Event()

    def preparing(self, text: str) -> None:
        """Nothing."""

    def round_started(self, number: int, pages: int) -> None:
        """Nothing."""

    def round_progress(self, pages_done: int, rate: float) -> None:
        """Nothing."""

    def round_ended(
        self, record: RoundRecord, estimate_s: float, limit_s: float
    ) -> None:
        """Nothing."""

    def slowing_down(self, share: float) -> None:
        """Nothing."""

    def freezing(self) -> None:
        """Nothing."""

    def handing_over(self) -> None:
        """Remembered, for whoever would still call it off."""
        self.handover_began.set()

    def in_doubt(self, text: str) -> None:
        """Said in any case: a process stands still until somebody answers."""
        self.doubt_began.set()
        print(f"migrate: IN DOUBT: {printable(text)}", file=sys.stderr, flush=True)

    def arrived(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is held."""


class JsonlProgress(SilentProgress):
    """One JSON object a line, for programs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lock = Lock()

    def preparing(self, text: str) -> None:
        """``{"event": "preparing", "text": …}``"""
        self._say("preparing", text=text)

    def round_started(self, number: int, pages: int) -> None:
        """``{"event": "round_started", "number": …, "pages": …}``"""
        self._say("round_started", number=number, pages=pages)

    def round_progress(self, pages_done: int, rate: float) -> None:
        """``{"event": "round_progress", "pages_done": …, "rate_bytes_per_s": …}``"""
        self._say("round_progress", pages_done=pages_done, rate_bytes_per_s=rate)

    def round_ended(
        self, record: RoundRecord, estimate_s: float, limit_s: float
    ) -> None:
        """``{"event": "round_ended", … the record …, "estimate_s", "limit_s"}``"""
        self._say(
            "round_ended",
            number=record.number,
            pages=record.pages,
            zero_pages=record.zero_pages,
            bytes_raw=record.bytes_raw,
            bytes_wire=record.bytes_wire,
            duration_s=record.duration_s,
            pause_s=record.pause_s,
            estimate_s=estimate_s,
            limit_s=limit_s,
        )

    def slowing_down(self, share: float) -> None:
        """``{"event": "slowing_down", "share": …}``"""
        self._say("slowing_down", share=share)

    def freezing(self) -> None:
        """``{"event": "freezing"}``"""
        self._say("freezing")

    def in_doubt(self, text: str) -> None:
        """``{"event": "in_doubt", "text": …}``"""
        self.doubt_began.set()
        self._say("in_doubt", text=text)

    def arrived(self) -> None:
        """``{"event": "arrived"}``"""
        self._say("arrived")

    def _say(self, event: str, **values: Any) -> None:  # noqa: ANN401  JSON values
        line = json.dumps({"event": event, **values})
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


class RichProgress(SilentProgress):
    """A line of state and a bar for each round, on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        # rich costs 60 ms to import: only who sees a bar pays for it.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
        )

        self._console = Console(file=stream, highlight=False)
        self._bar: RichBar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            refresh_per_second=8,
        )
        self._lock = Lock()
        self._round: Any = None
        self._pages = 0
        self._live = False

    def preparing(self, text: str) -> None:
        """A line that says so."""
        with self._lock:
            self._bar.console.print(printable(text), markup=False)

    def round_started(self, number: int, pages: int) -> None:
        """A new bar."""
        with self._lock:
            if not self._live:
                self._bar.start()
                self._live = True
            self._pages = pages
            self._round = self._bar.add_task(
                f"round {number}", total=max(pages, 1), state=f"{pages} pages"
            )

    def round_progress(self, pages_done: int, rate: float) -> None:
        """The bar moves."""
        with self._lock:
            if self._round is not None:
                left = max(self._pages - pages_done, 0)
                self._bar.update(
                    self._round,
                    completed=pages_done,
                    state=f"{left} pages left, {size(rate)}/s",
                )

    def round_ended(
        self, record: RoundRecord, estimate_s: float, limit_s: float
    ) -> None:
        """The bar is full, and says what a freeze would cost now."""
        with self._lock:
            if self._round is not None:
                self._bar.update(
                    self._round,
                    completed=max(self._pages, 1),
                    state=(
                        f"{record.pages} pages in {seconds(record.duration_s)}; "
                        f"downtime would be {seconds(estimate_s)} "
                        f"(limit {seconds(limit_s)})"
                    ),
                )

    def slowing_down(self, share: float) -> None:
        """A line that says so."""
        with self._lock:
            self._bar.console.print(
                f"it writes too fast: held back {share:.0%} of the time", markup=False
            )

    def freezing(self) -> None:
        """The bars stand: rich's refreshing thread would compete for the GIL."""
        self.close()

    def close(self) -> None:
        """Stop drawing; what was drawn stays."""
        with self._lock:
            if self._live:
                self._bar.stop()
                self._live = False


def choose(style: ProgressStyle, *, quiet: bool = False) -> Progress:
    """The progress that ``style`` asks for, on stderr."""
    if style is ProgressStyle.JSONL:
        return JsonlProgress(sys.stderr)
    if style is ProgressStyle.AUTO and not quiet and sys.stderr.isatty():
        return RichProgress(sys.stderr)
    return SilentProgress()
