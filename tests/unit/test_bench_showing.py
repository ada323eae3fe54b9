"""What people are shown: every table, plot and page can be made of any results."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench import page, tables
from bench.answer import Answer, as_json
from bench.catalogue import BENCHES
from bench.figures import summary
from bench.presentation import MISSING, Table, spread, tail
from bench.scale import settings
from bench.wanted import Wanted

ROOT = Path(__file__).parents[2]
MACHINE = {
    "cpu": "a <fast> one",
    "cpus": 2,
    "virtual": True,
    "memory_bytes": 1 << 33,
    "kernel": "6.18",
    "python": "3.11",
    "load_average": 0.0,
    "date": "today",
    "command": "python -m bench",
}


def test_a_spread_has_one_unit() -> None:
    assert spread(summary([0.001, 0.002, 0.0105])) == "2 (1 to 10.5) ms"
    assert spread(summary([1.5])) == "1.5 (1.5 to 1.5) s"
    assert tail(summary([0.25])) == "250 / 250 ms"
    assert spread(None) == tail(None) == MISSING


def test_markdown_has_as_many_cells_in_each_line() -> None:
    lines = tables.markdown(Table(("a", "b"), (("1", "2"),))).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_the_page_escapes_what_it_is_given() -> None:
    answer = Answer(BENCHES["downtime"], MACHINE, [])
    made = page.html([(answer, [])])
    assert "a &lt;fast&gt; one" in made
    assert "<fast>" not in made


def test_one_answer_is_an_object_and_several_are_a_list() -> None:
    answers = [Answer(BENCHES[name], MACHINE, []) for name in ("downtime", "cpu")]
    assert as_json(answers[:1]).startswith("{")
    assert as_json(answers).startswith("[")


# matplotlib keeps its fonts open, and we look for what is left behind.
DRAW = """
import sys
from pathlib import Path
from bench import pictures
from bench.presentation import Plot, Point, Series
pictures.require()
points = (Point(1, 2, 1, 3), Point(2, 3, 3, 4))
series = (Series("some", points), Series("none", ()))
pictures.draw(Plot("a", "A", "x", "y", series, logarithmic_x=True), Path(sys.argv[1]))
pictures.draw(Plot("b", "nothing at all", "x", "y", ()), Path(sys.argv[1]))
"""


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("pictures are an extra: pip install .[bench]")
    subprocess.run([sys.executable, "-c", DRAW, tmp_path], cwd=ROOT, check=True)
    made = sorted(tmp_path.iterdir())
    assert [path.name for path in made] == ["a.png", "b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_scale_asks_one_thing_at_a_time() -> None:
    """After one with nothing much, to compare with."""
    plain, *alone = settings(Wanted(threads=(100,), files=(7, 8)))
    assert plain["files"] == plain["vmas"] == 0
    assert [one["files"] for one in alone] == [0, 7, 8]
    assert [one["threads"] for one in alone] == [100, 2, 2]
    assert all(one["vmas"] == 0 for one in alone)
