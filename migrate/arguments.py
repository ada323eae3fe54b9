"""The options of a move, as a command line has them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from migrate.errors import printable
from migrate.options import (
    MoveOptions,
    OnStall,
    OptionError,
    Peer,
    PidPolicy,
    ProgressStyle,
    TrackerChoice,
    parse_compress,
    parse_milliseconds,
    parse_peer,
    parse_rate,
    parse_seconds,
    parse_streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

STATE_DIRECTORY_VARIABLE = "MIGRATE_STATE_DIR"  # as migrate.state_directory has it
PID_MAX = 1 << 22  # the largest that Linux gives out: proc_sys_kernel(5), pid_max


@dataclass(frozen=True, slots=True)
class Manner:
    """How a move is talked about."""

    json: bool
    quiet: bool
    verbose: bool
    progress: ProgressStyle


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line asked for."""

    peer: Peer
    pids: tuple[int, ...]  # each once
    options: MoveOptions
    manner: Manner


def asks_for_a_move(command: Callable[[Asked], int]) -> Callable[..., int]:
    """``command`` with the options of a move; it gets them as one Asked."""

    @functools.wraps(command)
    def with_values(**values: Any) -> int:  # noqa: ANN401  as click parsed them
        return command(_asked(**values))

    # click takes a function's options in the order of its decorators, upside down.
    for option in reversed(_OPTIONS):
        option(with_values)
    return with_state_directory(with_values)


def _asked(
    *,
    to: Peer,
    pids: tuple[int, ...],
    json: bool,
    quiet: bool,
    verbose: bool,
    progress: str,
    downtime_limit: float,
    max_rounds: int,
    timeout: float | None,
    pid_policy: str | None,
    on_stall: str,
    tracker: str,
    **same_name: Any,  # noqa: ANN401  bandwidth, streams, compress, …
) -> Asked:
    options = MoveOptions(
        downtime_limit_s=downtime_limit,
        rounds_max=max_rounds,
        timeout_s=timeout,
        on_stall=OnStall(on_stall),
        tracker=TrackerChoice(tracker),
        pid_policy=PidPolicy(pid_policy or PidPolicy.AUTO),
        **same_name,
    )
    if ignored := _not_obeyed_yet(options):
        raise click.UsageError(f"{ignored} is not there yet; leave it out.")
    manner = Manner(json, quiet, verbose, ProgressStyle(progress))
    return Asked(to, tuple(dict.fromkeys(pids)), options, manner)


def _not_obeyed_yet(options: MoveOptions) -> str | None:
    """What was asked for and would be passed over in silence."""
    if options.streams not in {None, 1}:
        return "--streams above 1"
    return None


def parsed(parse: Callable[[str], T]) -> Callable[..., T | None]:
    """A click callback: what ``parse`` makes of the text, or a usage error."""

    def callback(
        ctx: click.Context, parameter: click.Parameter, text: str | None
    ) -> T | None:
        try:
            return None if text is None else parse(text)
        except OptionError as error:
            raise click.BadParameter(
                printable(str(error)), ctx=ctx, param=parameter
            ) from None

    return callback


def with_state_directory(command: Callable[..., int]) -> Callable[..., int]:
    """Add ``--state-dir``, which is heard by whoever opens the directory."""

    def remember(
        ctx: click.Context, parameter: click.Parameter, path: str | None
    ) -> None:
        if path is not None:
            os.environ[STATE_DIRECTORY_VARIABLE] = path

    return click.option(
        "--state-dir",
        metavar="DIR",
        expose_value=False,
        callback=remember,
        help="Where the journals of this host lie.  [default: /var/lib/migrate]",
    )(command)


def _choice(enum: type[Any], *names: str) -> click.Choice[str]:
    return click.Choice(names or [member.value for member in enum])


_OPTIONS = (
    click.option(
        "--to",
        metavar="HOST:PORT",
        required=True,
        callback=parsed(parse_peer),
        help="The agent that shall have it; [ADDRESS]:PORT for IPv6.",
    ),
    click.option(
        "--downtime-limit",
        metavar="MS",
        default="50",
        callback=parsed(parse_milliseconds),
        show_default=True,
        help="Stop and copy when the estimated downtime falls under it.",
    ),
    click.option(
        "--max-rounds",
        metavar="N",
        type=click.IntRange(1, 10_000),
        default=30,
        show_default=True,
        help="Rounds after which to stop trying.",
    ),
    click.option(
        "--timeout",
        metavar="S",
        callback=parsed(parse_seconds),
        help="Seconds after which to stop trying.",
    ),
    click.option(
        "--on-stall",
        type=_choice(OnStall),
        default=OnStall.THROTTLE.value,
        show_default=True,
        help="What to do when the writes outrun the link.",
    ),
    click.option(
        "--bandwidth",
        metavar="RATE",
        callback=parsed(parse_rate),
        help="Send no faster than this, e.g. 200MB/s.",
    ),
    click.option(
        "--streams",
        metavar="N|auto",
        default="auto",
        show_default=True,
        callback=parsed(parse_streams),
        help="Connections that carry pages.",
    ),
    click.option(
        "--compress",
        metavar="auto|none|zstd[:LEVEL]",
        default="auto",
        show_default=True,
        callback=parsed(parse_compress),
        help="How pages are packed.",
    ),
    click.option(
        "--tracker",
        type=_choice(TrackerChoice),
        default=TrackerChoice.AUTO.value,
        show_default=True,
        help="What finds the pages written meanwhile.",
    ),
    click.option(
        "--pid",
        "pid_policy",
        type=_choice(PidPolicy, "keep", "any", "new-namespace"),
        help="The pid over there.  [default: keep; a new pid namespace if taken]",
    ),
    click.option(
        "--supervised",
        is_flag=True,
        help="Let it go though a supervisor will see it end, and may start another.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Only say whether it could go, as check does."
    ),
    click.option("--json", is_flag=True, help="One JSON report on stdout."),
    click.option(
        "--progress",
        type=_choice(ProgressStyle),
        default=ProgressStyle.AUTO.value,
        show_default=True,
        help="How progress is shown on stderr.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log what is done."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing on success."),
    click.argument(
        "pids", metavar="PID", nargs=-1, required=True, type=click.IntRange(1, PID_MAX)
    ),
)
