"""Plays cases of the sweep, several at a time, and writes what came of each.

    python -m tests.live.handover_sweep [--beds N] [--table FILE] [WORD…]

With words only the cases with one of them in their names. `make sweep` plays all. Exits
with 1 if anything was wrong.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from migrate.state_directory import VARIABLE
from tests.live.handover import Sweep, sweep
from tests.live.handover_cases import CUTS, Case, every_case


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a case."""

    case: str
    point: str
    fault: str
    who: str
    where: str
    code: int
    locks_lost: tuple[str, ...]
    took_s: float
    wrong: str  # empty: nothing


def played(on: Sweep, cases: Iterable[Case]) -> Iterator[Row]:
    """A row for each, also where something is wrong with it."""
    for case in cases:
        names = (str(case), case.point, case.fault.value, case.who.value)
        try:
            ended = on.play(case)
        except (AssertionError, OSError) as error:
            traceback.print_exc()
            log = (on.folder / "moving.log").read_text()
            yield Row(*names, "", 0, (), 0.0, f"{error}\n{log}")
            continue
        # Cut off, the copy that never ran may hold them until it is ended.
        lost = ended.locks_lost and case.fault not in CUTS
        yield Row(
            *names,
            ended.where,
            ended.code,
            ended.locks_lost,
            ended.took_s,
            f"it has lost its locks: {ended.locks_lost}" if lost else "",
        )


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beds", type=int, default=3)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    cases = [
        c
        for c in every_case()
        if not given.words or any(word in str(c) for word in given.words)
    ]
    if given.part:
        first, beds = map(int, given.part.split("/"))
        _play_part(cases[first::beds])
        return 0
    began_s = time.monotonic()
    rows = list(_rows(given.beds, given.words))
    text = "\n".join(_table(rows, time.monotonic() - began_s, given.beds)) + "\n"
    if given.table:
        given.table.parent.mkdir(parents=True, exist_ok=True)
        given.table.write_text(text)
    print(text)
    return 1 if len(rows) != len(cases) or any(row.wrong for row in rows) else 0


def _play_part(cases: list[Case]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ[VARIABLE] = f"{folder}/state"
        with sweep(Path(folder)) as on:
            for row in played(on, cases):
                print(msgspec.json.encode(row).decode(), flush=True)


def _rows(beds: int, words: list[str]) -> Iterator[Row]:
    parts = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.live.handover_sweep"),
                *(f"--part={number}/{beds}", *words),
            ],
            stdout=subprocess.PIPE,
        )
        for number in range(beds)
    ]
    for part in parts:
        with part:
            assert part.stdout is not None
            for line in part.stdout:
                yield msgspec.json.decode(line, type=Row)


def _table(rows: list[Row], took_s: float, beds: int) -> Iterator[str]:
    wrong = [row for row in rows if row.wrong]
    ends = Counter(row.where for row in rows if not row.wrong)
    yield f"{len(rows)} cases in {took_s:.0f} s on {beds} beds, {len(wrong)} wrong."
    yield f"It counted on at the source {ends['a']} times, there {ends['b']} times."
    yield ""
    columns = list(dict.fromkeys((row.fault, row.who) for row in rows))
    yield f"| point | {' | '.join(', '.join(column) for column in columns)} |"
    yield "| --- |" + " --- |" * len(columns)
    for point in dict.fromkeys(row.point for row in rows):
        cells = [_cell(rows, point, column) for column in columns]
        yield f"| `{point}` | {' | '.join(cells)} |"
    yield ""
    yield "a, b: the host where it counted on; then the exit code of the command."
    for row in wrong:
        yield f"\n{row.case}: {row.wrong}"


def _cell(rows: list[Row], point: str, column: tuple[str, str]) -> str:
    found = [r for r in rows if r.point == point and (r.fault, r.who) == column]
    said = (
        "WRONG"
        if row.wrong
        else f"{row.where} {row.code}" + (" (no locks)" if row.locks_lost else "")
        for row in found
    )
    return ", ".join(said) or "-"


if __name__ == "__main__":
    raise SystemExit(main())
