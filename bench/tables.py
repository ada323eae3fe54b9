"""Tables on a terminal, and as lines of a Markdown document."""

from rich.console import Console
from rich.table import Table as RichTable

from bench.presentation import Table


def show(table: Table, title: str, console: Console) -> None:
    """Print it, as wide as it needs to be."""
    shown = RichTable(title=title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def markdown(table: Table) -> str:
    """The lines of a table for a document."""
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
