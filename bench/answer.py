"""What one bench has found, and the files that are made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import page, pictures, tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.figures import Result
    from bench.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Answer:
    """The results of one bench, and where they were had."""

    bench: Measurement
    machine: Result
    results: list[Result]

    def to_json(self) -> Result:
        """As plain values."""
        return {
            "bench": self.bench.name,
            "machine": self.machine,
            "results": self.results,
        }

    def failed_runs(self) -> int:
        """How many runs went wrong."""
        return sum(len(result["failures"]) for result in self.results)


def as_json(answers: Sequence[Answer]) -> str:
    """One object; a list of them where several benches were asked for."""
    found = [answer.to_json() for answer in answers]
    return json.dumps(found[0] if len(found) == 1 else found, indent=1) + "\n"


def write_folder(answers: Sequence[Answer], folder: Path) -> Path:
    """JSON, tables in Markdown, plots and the page, in ``folder``; gives the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[Answer, list[Path]]] = []
    for answer in answers:
        (folder / f"{answer.bench.name}.json").write_text(as_json([answer]))
        table = tables.markdown(answer.bench.table(answer.results))
        (folder / f"{answer.bench.name}.md").write_text(table)
        plots = answer.bench.plots(answer.results)
        drawn.append((answer, [pictures.draw(plot, folder) for plot in plots]))
    index = folder / "index.html"
    index.write_text(page.html(drawn))
    return index
