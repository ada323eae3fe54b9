"""Arguments in; one sentence and an exit code out.

What a script may want goes to stdout, everything else to stderr. What nobody
expected is caught here, as in agent.py and worker.py, and becomes exit code 1.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import click

from migrate import acquaintance, resolution
from migrate.arguments import Asked, asks_for_a_move, parsed, with_state_directory
from migrate.errors import (
    MigrateError,
    Outcome,
    Reason,
    RolledBack,
    printable,
)
from migrate.options import MoveOptions, Peer, parse_peer, parse_rate, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio import CancelScope

    from migrate.progress import Progress
    from migrate.report import Report

DISTRIBUTION = "live-process-migration"
AGENT_PORT = 7077


class Depart(Protocol):
    """``migrate.source.depart``: moves a tree, or raises MigrateError."""

    async def __call__(
        self,
        pids: Sequence[int],
        peer: tuple[str, int],
        options: MoveOptions,
        progress: Progress,
    ) -> Report:
        """What happened."""


def run(arguments: Sequence[str], *, depart: Depart | None = None) -> int:
    """The exit code of ``migrate ARGUMENTS``.

    ``depart`` stands in for ``migrate.source.depart``.
    """
    try:
        code: int | None = commands.main(
            list(arguments), "migrate", standalone_mode=False, obj=depart
        )
    except click.ClickException as error:
        error.show()
        if "--json" in arguments:
            _echo_json(Outcome.WRONG_ARGUMENTS, "arguments", error.format_message())
        return error.exit_code
    except click.Abort:
        return 128 + signal.SIGINT
    except Exception as error:
        # Outside of a move: that one knows better what to say.
        return _our_bug(
            error, "", verbose=not {"-v", "--verbose"}.isdisjoint(arguments)
        )
    return code or 0


class MoveByDefault(click.Group):
    """Commands, where a first word that is none of them begins a move."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``--to HOST:PORT PID`` is ``move --to HOST:PORT PID``."""
        first = args[0] if args else ""
        if first.isdigit() or (first[:1] == "-" and first not in _OF_THE_GROUP):
            args.insert(0, "move")
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The move first: it is what most people want."""
        formatter.write_usage(ctx.command_path, "--to HOST:PORT PID [PID…]")
        formatter.write_usage(ctx.command_path, "COMMAND [OPTIONS]…")

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """The options of a move, then the other commands."""
        with click.Context(move, info_name="move", parent=ctx) as of_move:
            click.Command.format_options(move, of_move, formatter)
        self.format_commands(ctx, formatter)


_OF_THE_GROUP = frozenset({"--help", "-h", "--version"})


@click.group(
    cls=MoveByDefault,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, wanted: _show_version(ctx) if wanted else None,
    help="Show the version and exit.",
)
def commands() -> None:
    """Move a running process to another host, where it goes on."""


commands.add_command(acquaintance.identity)
commands.add_command(acquaintance.pair)
commands.add_command(acquaintance.policy)
commands.add_command(resolution.status)
commands.add_command(resolution.resolve)


def _show_version(context: click.Context) -> None:
    from importlib import metadata

    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "(not installed: run from its source)"
    click.echo(f"migrate {version}")
    context.exit()


@commands.command(hidden=True)
@asks_for_a_move
def move(asked: Asked) -> int:
    """Move a running process, its threads included."""
    return _made_for_us(asked)


@commands.command()
@asks_for_a_move
def check(asked: Asked) -> int:
    """Say every reason why it could not go, without touching it."""
    options = replace(asked.options, dry_run=True)
    return _made_for_us(replace(asked, options=options))


def _made_for_us(asked: Asked) -> int:
    """By the agent of this host, where we are not root and there is one; else by us."""
    if os.geteuid() == 0 or click.get_current_context().obj is not None:
        return Move(asked, _depart()).run()
    from migrate import control

    try:
        code = control.ask(asked)
    except ConnectionResetError as error:
        _complain(
            f"The move was lost sight of: {error}. It is undone, or the process has "
            "moved; `migrate status` says which to root."
        )
        return Outcome.OUR_BUG.exit_code
    return Move(asked, _depart()).run() if code is None else code


def _depart() -> Depart:
    given: Depart | None = click.get_current_context().obj
    if given is not None:
        return given
    from migrate import source

    return source.depart


@dataclass(frozen=True, slots=True)
class Move:
    """One move that somebody asked for, from the first word to the exit code."""

    asked: Asked
    depart: Depart

    def run(self) -> int:
        """Do it, tell how it went, and give the exit code."""
        import trio

        from migrate.progress import choose

        if self.asked.manner.verbose:
            from migrate import logs

            logs.start(verbose=True)
        progress = choose(self.asked.manner.progress, quiet=self.asked.manner.quiet)
        try:
            report = trio.run(self._unless_told_otherwise, progress)
        except Exception as error:
            progress.close()
            known = _known(error)
            return self._failed(known) if known else self._our_bug(error, progress)
        progress.close()
        return self._done(report)

    async def _unless_told_otherwise(self, progress: Progress) -> Report:
        """Depart; a signal before the hand-over calls it off.

        Raises:
            RolledBack: it was called off.
        """
        import trio

        attempt = trio.CancelScope()
        told: list[signal.Signals] = []
        ended: Report | MigrateError | None = None
        # SIGHUP too: a terminal that goes away must not leave a frozen process.
        with trio.open_signal_receiver(
            signal.SIGINT, signal.SIGTERM, signal.SIGHUP
        ) as signals:
            async with trio.open_nursery() as nursery:

                async def obey() -> None:
                    async for number in signals:
                        told.append(signal.Signals(number))
                        _call_off(attempt, progress)

                nursery.start_soon(obey)
                with attempt:
                    try:
                        ended = await self.depart(
                            self.asked.pids,
                            self.asked.peer,
                            self.asked.options,
                            progress,
                        )
                    except MigrateError as error:
                        # Not through the nursery, which would wrap it in a group.
                        ended = error
                nursery.cancel_scope.cancel()
        if ended is None:
            raise RolledBack(
                f"The move to {self.asked.peer} was called off ({told[0].name}) "
                "before the hand-over."
            )
        if isinstance(ended, MigrateError):
            raise ended
        return ended

    def _done(self, report: Report) -> int:
        if self.asked.options.dry_run:
            report = replace(report, outcome=Outcome.CAN_GO)
        if self.asked.manner.json:
            click.echo(report.json())
        elif not self.asked.manner.quiet:
            click.echo(
                f"{_named(self.asked.pids)} can go to {self.asked.peer}."
                if self.asked.options.dry_run
                else report.text(str(self.asked.peer))
            )
        return report.outcome.exit_code

    def _failed(self, error: MigrateError) -> int:
        from migrate.report import Report

        _complain(str(error))
        for reason in error.reasons:
            if reason.message != error.message:
                click.echo(f"  - {printable(reason.message)}", err=True)
        if self.asked.manner.json:
            click.echo(Report.of_failure(error).json())
        return error.exit_code

    def _our_bug(self, error: Exception, progress: Progress) -> int:
        where = (
            "The hand-over had begun: look for the process at both ends before "
            "anything else."
            if progress.handover_began.is_set()
            else "The hand-over had not begun, so the process runs on here."
        )
        code = _our_bug(error, where, verbose=self.asked.manner.verbose)
        if self.asked.manner.json:
            _echo_json(Outcome.OUR_BUG, "bug", f"{error!r}. {where}")
        return code


def _our_bug(error: Exception, where: str, *, verbose: bool) -> int:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if verbose:
        from migrate import logs

        logs.start(verbose=True).error("bug", exc_info=error)
    way_out = "" if verbose else "With -v the log has a traceback."
    said = f"This is a bug of ours: {error!r}."
    _complain(" ".join(filter(None, (said, where, way_out))))
    return Outcome.OUR_BUG.exit_code


def _known(error: Exception) -> MigrateError | None:
    """The outcome that ``error`` is, or is a group of and nothing else."""
    if isinstance(error, ExceptionGroup):
        known = [_known(inner) for inner in error.exceptions]
        return known[0] if all(known) else None
    return error if isinstance(error, MigrateError) else None


def _call_off(attempt: CancelScope, progress: Progress) -> None:
    if progress.doubt_began.is_set():
        # It stays frozen; whoever asks next need not be this command.
        attempt.cancel()
    elif progress.handover_began.is_set():
        _complain("The hand-over is under way and cannot be called off; wait for it.")
    else:
        progress.close()
        _complain("Calling it off.")
        attempt.cancel()


def _named(pids: Sequence[int]) -> str:
    return f"pid {pids[0]}" if len(pids) == 1 else f"pids {', '.join(map(str, pids))}"


def _complain(sentence: str) -> None:
    click.echo(f"migrate: {printable(sentence)}", err=True)


def _echo_json(outcome: Outcome, kind: str, message: str) -> None:
    from migrate.report import Report

    click.echo(Report(outcome=outcome, reasons=(Reason(kind, message),)).json())


@commands.command()
@click.option(
    "--size",
    metavar="SIZE",
    default="512M",
    show_default=True,
    callback=parsed(parse_size),
    help="Memory of the program that moves.",
)
@click.option(
    "--rate",
    metavar="RATE",
    default="50M",
    show_default=True,
    callback=parsed(parse_rate),
    help="How fast it writes to it.",
)
@click.option("--json", is_flag=True, help="The report of the move on stdout.")
def demo(size: int, rate: int, json: bool) -> int:
    """Move a live program between two throw-away hosts on this machine."""
    from migrate.demo import command

    return command.show(size, rate, as_json=json)


@commands.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=f"127.0.0.1:{AGENT_PORT}",
    show_default=True,
    callback=parsed(lambda text: parse_peer(text, any_port=True)),
    help="Where peers connect; port 0 takes a free one.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 1000),
    help="Arrivals at one time; more are turned away.  [default: as agent.toml; 16]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@with_state_directory
def agent(listen: Peer, workers: int | None, verbose: bool) -> int:
    """Receive processes."""
    import trio

    from migrate import agent as service
    from migrate import logs

    here = service.Agent(
        listen,
        workers_max=workers,
        log=logs.start(verbose=verbose),
    )
    try:
        trio.run(here.serve)
    except service.CannotListen as error:
        _complain(str(error))
        return Outcome.WRONG_ARGUMENTS.exit_code
    return 0
