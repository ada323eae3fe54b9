"""Progress: for programs, for a terminal, and from many threads at once."""

import io
import json
from threading import Thread

import pytest

from migrate.options import ProgressStyle
from migrate.progress import (
    JsonlProgress,
    Progress,
    RichProgress,
    SilentProgress,
    choose,
)
from precopy.rounds import RoundRecord

ROUND = RoundRecord(
    number=1,
    pages=1000,
    zero_pages=0,
    bytes_raw=4096000,
    bytes_wire=2000000,
    duration_s=0.5,
    pause_s=0.0,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def tell_a_whole_story(progress: Progress) -> None:
    progress.preparing("looking at \x1b[31mpid 4711")
    for number in (1, 2):
        progress.round_started(number, 1000)
        progress.round_progress(500, 8e6)
        progress.round_ended(ROUND, 0.012, 0.05)
    progress.freezing()
    progress.handing_over()
    progress.arrived()
    progress.close()


def test_a_program_reads_one_object_a_line() -> None:
    """In the order in which things happened."""
    stream = io.StringIO()
    tell_a_whole_story(JsonlProgress(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    one_round = ["round_started", "round_progress", "round_ended"]
    assert [event["event"] for event in events] == [
        "preparing",
        *one_round,
        *one_round,
        "freezing",
        "arrived",
    ]
    assert events[1] == {"event": "round_started", "number": 1, "pages": 1000}
    assert events[3]["estimate_s"] == 0.012
    assert events[3]["bytes_wire"] == 2000000


def test_lines_of_many_threads_stay_whole() -> None:
    """The tracer thread and those that carry pages speak at the same time."""
    stream = io.StringIO()
    progress = JsonlProgress(stream)

    def speak() -> None:
        for pages in range(200):
            progress.round_progress(pages, 1.0)

    threads = [Thread(target=speak) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len([json.loads(line) for line in lines]) == 800


def test_a_person_sees_a_bar_for_each_round() -> None:
    """With what a freeze would cost, against the limit."""
    terminal = Terminal()
    tell_a_whole_story(RichProgress(terminal))
    shown = terminal.getvalue()
    assert "round 1" in shown
    assert "round 2" in shown
    assert "12.0 ms (limit 50.0 ms)" in shown
    assert "\x1b[31m" not in shown.partition("round 1")[0]


@pytest.mark.parametrize(
    "progress",
    [SilentProgress(), JsonlProgress(io.StringIO()), RichProgress(Terminal())],
)
def test_the_point_of_no_return_is_remembered(progress: Progress) -> None:
    """By all of them: whoever would call the move off asks."""
    progress.freezing()
    assert not progress.handover_began.is_set()
    progress.handing_over()
    assert progress.handover_began.is_set()


def test_nothing_is_drawn_while_the_process_stands_still() -> None:
    """The thread that refreshes the bar ends before the freeze begins."""
    terminal = Terminal()
    progress = RichProgress(terminal)
    progress.round_started(1, 10)
    progress.freezing()
    drawn = terminal.getvalue()
    progress.round_progress(5, 1.0)
    progress.handing_over()
    assert terminal.getvalue() == drawn


def test_the_style_depends_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar only where somebody looks, and wants to."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(choose(ProgressStyle.AUTO)) is SilentProgress
    monkeypatch.setattr("sys.stderr", Terminal())
    assert type(choose(ProgressStyle.AUTO)) is RichProgress
    assert type(choose(ProgressStyle.AUTO, quiet=True)) is SilentProgress
    assert type(choose(ProgressStyle.NONE)) is SilentProgress
    assert type(choose(ProgressStyle.JSONL, quiet=True)) is JsonlProgress
