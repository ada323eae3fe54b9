"""Limits, the log of decisions, and how much memory may come."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import config_directory, limits
from migrate.admission import Allowance, TooMuch
from migrate.audit import FILE, Audit
from migrate.config_directory import NotOurs
from migrate.limits import Limits
from migrate.policy import Decision
from precopy.ids import Pid

YES = Decision(True, "The rule for user *.")


def test_without_a_file_there_are_limits(tmp_path: Path) -> None:
    """And a file names what it changes."""
    assert limits.load(tmp_path) == Limits()
    config_directory.write_ours(
        tmp_path / limits.FILE, 'arrivals_max = 2\nmemory_max = "1G"\n', anew=True
    )
    assert limits.load(tmp_path) == Limits(arrivals_max=2, memory_max="1G")


@pytest.mark.parametrize(
    "text",
    [
        "arrivals_maximum = 2",
        "arrivals_max = 0",
        "arrivals_max = true",
        'memory_max = "much"',
        "startups_begin = 200",
        "startups_rate = 2.0",
        "[",
    ],
)
def test_a_limit_that_is_none(tmp_path: Path, text: str) -> None:
    """Is not passed over."""
    config_directory.write_ours(tmp_path / limits.FILE, text, anew=True)
    with pytest.raises(NotOurs):
        limits.load(tmp_path)


@given(st.integers(0, 300), st.floats(0, 1, exclude_max=True))
def test_more_strangers_are_dropped_rather(strangers: int, draw: float) -> None:
    """None below the first number, all from the last on, more and more in between."""
    ours = Limits()
    dropped = ours.drops(strangers, draw)
    if strangers < 10:
        assert not dropped
    if strangers >= 100:
        assert dropped
    if dropped:
        assert ours.drops(strangers + 1, draw)
    if strangers >= 10 and draw < 0.3:
        assert dropped


def test_a_decision_is_one_line(tmp_path: Path) -> None:
    """Whatever the names in it; readable by nobody else, and never rewritten."""
    log = Audit(tmp_path)
    log.write("arrival", YES, peer="SHA256:0", pid=7, exe="/x\n\x1b[2J", user=None)
    log.write("arrival", Decision(False, "y" * 5000), exe="/bin/\udcff")
    text = (tmp_path / FILE).read_text()
    first, second = map(json.loads, text.splitlines())
    assert first["verdict"] == "allowed" and first["exe"] == "/x\\n\\x1b[2J"
    assert first["pid"] == 7 and first["user"] is None
    assert second["verdict"] == "denied" and len(second["reason"]) == 1000
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """Is an error, so that nothing is done that nobody hears of."""
    (tmp_path / FILE).symlink_to("/dev/full")
    with pytest.raises(OSError):
        Audit(tmp_path).write("arrival", YES)
    with pytest.raises(OSError):
        Audit(tmp_path / "missing").write("arrival", YES)


def test_memory_is_looked_at_while_it_comes() -> None:
    """What is there counts, not what was sent: pages come more than once."""
    own = Pid(os.getpid())
    plenty = Allowance(1 << 45)
    for _ in range(100):
        plenty.spend(1 << 30, (own,))
    little = Allowance(4096)
    with pytest.raises(TooMuch, match="4096 are allowed"):
        little.spend(4096, (own,))
    nobody = Allowance(4096)
    for _ in range(100):
        nobody.spend(4096, ())
