"""``python -m bench [NAME…]``: measure, and say what was found."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from bench import answer, machine, pictures, tables
from bench.answer import Answer
from bench.catalogue import BENCHES
from bench.wanted import Pages, Wanted
from migrate.demo.workload import WorkloadError
from migrate.options import OptionError, TrackerChoice, parse_rate, parse_size
from migrate.testbed import TestBedError

_ALL_WENT_WELL: Final = 0
_SOME_FAILED: Final = 1
_WRONG_ARGUMENTS: Final = 2
_MIB: Final = 1 << 20
_WIDE_ENOUGH: Final = 200


def _each(parse: Callable[[str], int]) -> Callable[..., tuple[int, ...]]:
    """A click callback that parses all values of a repeated option."""

    def callback(
        ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
    ) -> tuple[int, ...]:
        try:
            return tuple(parse(text) for text in texts)
        except OptionError as error:
            raise click.BadParameter(str(error), ctx=ctx, param=parameter) from None

    return callback


def _whole_mib(text: str) -> int:
    size_bytes = parse_size(text)
    if size_bytes % _MIB:
        raise OptionError(f"{text!r} is not a whole number of MiB.")
    return size_bytes


def _rate_or_none(text: str) -> int:
    """Zero says itself that there is none, and so does the word."""
    return 0 if text in {"0", "none"} else parse_rate(text)


def _whole_mib_per_s(text: str) -> int:
    rate_bytes_per_s = _rate_or_none(text)
    if rate_bytes_per_s % _MIB:
        raise OptionError(f"{text!r} is not a whole number of MiB a second.")
    return rate_bytes_per_s


def _count(name: str, most: int, help_: str) -> Callable[..., Any]:
    return click.option(
        name, multiple=True, metavar="N", type=click.IntRange(0, most), help=help_
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[NAME]…", nargs=-1, type=click.Choice([*BENCHES]))
@click.option("--json", "json_to", metavar="FILE|-", help="Write JSON there.")
@click.option(
    "--plots",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write JSON, plots and a page with all of it into this folder.",
)
@click.option("--runs", metavar="N", type=click.IntRange(1), help="Of each setting.")
@click.option("--peer", type=click.Choice(["criu"]), help="Compare with it.")
@click.option(
    "--size",
    "sizes_bytes",
    multiple=True,
    metavar="SIZE",
    callback=_each(_whole_mib),
    help="Memory of the workload, e.g. 64M; may be given several times.",
)
@click.option(
    "--write-rate",
    "write_rates_bytes_per_s",
    multiple=True,
    metavar="RATE",
    callback=_each(_whole_mib_per_s),
    help="How fast it is written to, e.g. 100M or 0; several times.",
)
@click.option(
    "--pages",
    multiple=True,
    type=click.Choice([kind.value for kind in Pages]),
    help="downtime: which pages it is made of; several times.",
)
@_count("--threads", 30_000, "scale: so many threads; several times.")
@_count("--files", 1 << 20, "scale: so many open files; several times.")
@_count("--vmas", 1 << 20, "scale: so many mappings; several times.")
@click.option(
    "--link-rate",
    "link_rates_bytes_per_s",
    multiple=True,
    metavar="RATE|none",
    callback=_each(_rate_or_none),
    help="link, convergence: what the link carries, e.g. 1Gbit; several times.",
)
@click.option(
    "--window",
    "window_s",
    metavar="S",
    type=click.FloatRange(0.1, 30),
    default=3.0,
    show_default=True,
    help="brownout: so long is looked at before and after.",
)
@click.option(
    "--heartbeat",
    "heartbeat_us",
    metavar="US",
    type=click.IntRange(50, 1_000_000),
    default=1000,
    show_default=True,
    help="Microseconds between two beats of the workload.",
)
@click.option(
    "--tracker",
    type=click.Choice([kind.value for kind in TrackerChoice]),
    default=TrackerChoice.AUTO.value,
    show_default=True,
    help="As migrate takes it.",
)
@click.pass_context
def main(
    ctx: click.Context,
    /,
    *,
    names: tuple[str, ...],
    json_to: str | None,
    plots: Path | None,
    peer: str | None,
    pages: tuple[str, ...],
    **same_name: Any,  # noqa: ANN401  as click parsed them
) -> None:
    """Measure, between two throw-away hosts on this machine; without a name all of it.

    Tables go to the terminal, and to stderr where stdout carries JSON.
    """
    console = Console(stderr=json_to == "-", width=_width(), highlight=False)
    wanted = Wanted(criu=peer == "criu", pages=tuple(map(Pages, pages)), **same_name)
    if os.geteuid() != 0:
        _complain("The bench makes two hosts out of namespaces, which needs root.")
        ctx.exit(_WRONG_ARGUMENTS)
    try:
        if plots is not None:
            pictures.require()
        answers = [_ask(name, wanted, console) for name in names or BENCHES]
    except (pictures.NoPictures, TestBedError, WorkloadError) as error:
        _complain(str(error))
        ctx.exit(_SOME_FAILED)
    if json_to is not None:
        _write(answer.as_json(answers), json_to)
    if plots is not None:
        console.print(f"All of it: {answer.write_folder(answers, plots)}", markup=False)
    failed = sum(one.failed_runs() for one in answers)
    ctx.exit(_SOME_FAILED if failed else _ALL_WENT_WELL)


def _ask(name: str, wanted: Wanted, console: Console) -> Answer:
    bench = BENCHES[name]
    told = Console(stderr=True, highlight=False)
    told.print(f"{bench.name}: {bench.question}", markup=False)
    described = machine.describe()
    results = bench.measure(wanted, lambda line: told.print(line, markup=False))
    tables.show(bench.table(results), f"{bench.name}: {bench.question}", console)
    console.print(machine.in_words(described), markup=False)
    return Answer(bench, described, results)


def _write(text: str, where: str) -> None:
    if where == "-":
        sys.stdout.write(text)
    else:
        Path(where).write_text(text)


def _width() -> int | None:
    """A file has no width; a table in it should not be broken."""
    return None if sys.stdout.isatty() else _WIDE_ENOUGH


def _complain(sentence: str) -> None:
    click.echo(f"bench: {sentence}", err=True)
