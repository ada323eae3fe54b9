"""One page of HTML with all tables and plots, that needs no other file."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Final

from bench.machine import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.answer import Answer
    from bench.presentation import Table

_HEAD: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Live process migration, measured</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto;
       padding: 0 1em; color: #222; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
code { background: #f2f2f2; padding: .1em .3em; }
.failed { color: #a00; }
</style>
<h1>Live process migration, measured</h1>
"""


def html(answers: Sequence[tuple[Answer, Sequence[Path]]]) -> str:
    """The page: each answer with the pictures that were drawn of it."""
    return _HEAD + "".join(_section(answer, pictures) for answer, pictures in answers)


def _section(answer: Answer, pictures: Sequence[Path]) -> str:
    failed = [sentence for found in answer.results for sentence in found["failures"]]
    return "\n".join(
        (
            f"<h2>{escape(answer.bench.name)}: {escape(answer.bench.question)}</h2>",
            f"<p>{escape(answer.bench.remarks)}</p>",
            _table(answer.bench.table(answer.results)),
            *(f'<p class="failed">{escape(sentence)}</p>' for sentence in failed),
            *map(_picture, pictures),
            f"<p>{escape(in_words(answer.machine))}<br>",
            f"<code>{escape(answer.machine['command'])}</code></p>\n",
        )
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n"
        for row in table.rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{rows}</table></div>'


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
