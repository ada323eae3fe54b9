"""``migrate status`` and ``migrate resolve``: what is under way or in doubt here."""

from __future__ import annotations

import json as to_json
import os
import time
from typing import TYPE_CHECKING, Any, Final

import click

from migrate.arguments import with_state_directory
from migrate.errors import Outcome, printable
from migrate.report import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from migrate.journal import Record
    from migrate.recovery import Standing
    from migrate.state_directory import Side, StateDirectory

_TRANSACTION_DIGITS: Final = 32


@click.command()
@click.option("--json", is_flag=True, help="One JSON object on stdout.")
@with_state_directory
def status(json: bool) -> int:
    """Show the moves that are under way or in doubt on this host."""
    from migrate.orphan_leaf import orphans
    from migrate.state_directory import StateDirectory

    state = StateDirectory()
    rows = list(_rows(state))
    lost = list(orphans(state))
    if json:
        frozen = [{"leaf": one.leaf, "pids": list(one.pids)} for one in lost]
        click.echo(to_json.dumps({"transactions": rows, "orphans": frozen}))
        return 0
    for row in rows:
        arrow = "to" if row["side"] == "departure" else "from"
        click.echo(
            f"{row['transaction']}  {row['state']}: pid {row['pid']} ({row['comm']}) "
            f"{arrow} {row['peer']}, {seconds(row['age_s'])} ago; {_whose(row)}"
        )
    for one in lost:
        pids = ", ".join(map(str, one.pids))
        click.echo(
            f"pid {pids} stands frozen in {printable(one.leaf)}, and no journal here "
            "says why. Look for it at the destination before you thaw it (see "
            "docs/handover.md)."
        )
    if not rows and not lost:
        click.echo("Nothing is under way, and nothing is in doubt.")
    return 0


def _whose(row: dict[str, Any]) -> str:
    if row["kept"]:
        return "its command or worker lives"
    if row["side"] == "departure":
        return f"nobody works on it: migrate resolve {row['transaction']}"
    return "nobody works on it; the next agent finishes it"


def _rows(state: StateDirectory) -> Iterator[dict[str, Any]]:
    from migrate.state_directory import Side

    for side in Side:
        for name in state.names(side):
            try:
                record, is_kept = state.look(side, name)
            except FileNotFoundError:
                continue
            if record is None:
                unread = {"transaction": name, "state": "UNREADABLE", "pid": 0}
                rest = {"comm": "?", "peer": "?", "age_s": 0.0, "leaf": ""}
                yield {**unread, **rest, "side": _SIDES[side.value], "kept": is_kept}
                continue
            yield {
                "transaction": name,
                "side": _SIDES[side.value],
                "state": record.state.name,
                "pid": record.pid,
                "comm": printable(os.fsdecode(record.comm)),
                "peer": printable(record.peer),
                "age_s": max(0.0, time.time() - record.written_s),
                "kept": is_kept,
                "leaf": printable(os.fsdecode(record.leaf)),
            }


_SIDES: Final = {"departures": "departure", "arrivals": "arrival"}


@click.command()
@click.argument("transaction", metavar="TX")
@click.option(
    "--decline",
    is_flag=True,
    help="On the destination: decline it unless it was accepted; print a token.",
)
@click.option(
    "--verdict", metavar="TOKEN", help="On the source: do as the destination's token."
)
@click.option(
    "--i-have-fenced",
    "fenced",
    metavar="HOST",
    help="On the source: swear that HOST, the destination, is off for good.",
)
@with_state_directory
def resolve(
    transaction: str, decline: bool, verdict: str | None, fenced: str | None
) -> int:
    """Settle a move that is in doubt; without an option: ask again, and explain."""
    from migrate.state_directory import Side, StateDirectory

    if sum((decline, verdict is not None, fenced is not None)) > 1:
        raise click.UsageError("Give one of --decline, --verdict, --i-have-fenced.")
    state = StateDirectory()
    if decline:
        return _decline(state, _found(state, Side.DESTINATION, transaction))
    name = _found(state, Side.SOURCE, transaction)
    try:
        record, is_kept = state.look(Side.SOURCE, name)
    except FileNotFoundError:
        raise click.UsageError(
            f"No process left this host in a transaction {name} that is not settled. "
            "See migrate status, on both hosts."
        ) from None
    if record is None:
        raise click.UsageError(f"The journal of {name} cannot be read.")
    if is_kept:
        raise click.UsageError(
            f"Process {record.keeper} works on {name}. Wait for it, or end it."
        )
    if (standing := _settled(state, record)) is not None:
        return _say(record, standing)
    if verdict is not None:
        return _obey(state, record, verdict)
    if fenced is not None:
        return _fence(state, record, fenced)
    return _explain(state, record)


def _settled(state: StateDirectory, record: Record) -> Standing | None:
    """Where it is, if what a dead command left needs nobody's answer."""
    from migrate import recovery
    from migrate.ownership import SourceState
    from migrate.recovery import Standing
    from migrate.state_directory import Side

    if record.state in (SourceState.GO, SourceState.LOST, SourceState.DONE):
        return None
    settled = recovery.settle(state, Side.SOURCE, record.name)
    for sentence in settled.lost if settled else ():
        click.echo(f"migrate: {printable(sentence)}", err=True)
    return Standing.HERE


def _found(state: StateDirectory, side: Side, beginning: str) -> str:
    """The one transaction with that beginning; a whole name need not be known here."""
    names = [name for name in state.names(side) if name.startswith(beginning.lower())]
    if len(names) == 1:
        return names[0]
    if len(beginning) == _TRANSACTION_DIGITS and not set(beginning) - set(_HEX):
        return beginning
    raise click.UsageError(
        f"{len(names)} transactions here begin with {beginning}. See migrate status."
    )


_HEX: Final = "0123456789abcdef"


def _decline(state: StateDirectory, name: str) -> int:
    from migrate import recovery, verdict_token
    from migrate.ownership import Verdict

    verdict = recovery.verdict_on_arrival(state, name)
    if verdict is Verdict.NOT_YET:
        click.echo(
            f"migrate: {name} is still being worked on here. Its worker gives up by "
            "itself once it has lost the source; try again then.",
            err=True,
        )
        return Outcome.IN_DOUBT.exit_code
    said = {
        Verdict.DECLINED: "It never ran here, and never will.",
        Verdict.ACCEPTED: "It was accepted, and runs here.",
        Verdict.DIED: "It was accepted, ran here, and died with this host.",
    }[verdict]
    click.echo(
        f"migrate: {said} On the source: migrate resolve {name} --verdict TOKEN",
        err=True,
    )
    transaction = bytes.fromhex(name)
    click.echo(verdict_token.sign(state.key(), transaction, verdict))
    return 0


def _obey(state: StateDirectory, record: Record, token: str) -> int:
    from migrate import recovery, verdict_token

    try:
        verdict = verdict_token.verify(token, record.transaction, record.epoch)
    except verdict_token.BadToken as error:
        raise click.UsageError(str(error)) from None
    standing = recovery.apply(state, record.name, verdict, record.epoch)
    return _say(record, standing)


def _fence(state: StateDirectory, record: Record, host: str) -> int:
    from migrate import recovery

    if host != record.peer_host:
        raise click.UsageError(
            f"{record.name} went to {record.peer_host}. Type that name, and only if "
            "that host is off, and will never let the process run again."
        )
    click.echo(
        "migrate: if the destination had accepted it, its time goes back to the "
        "freeze: what it did there is lost, and what it will do here may be done "
        "twice (numbers drawn, messages sent).",
        err=True,
    )
    state.audit(
        f"{record.name}: uid {os.getuid()} swears that {host} is fenced; "
        f"pid {record.pid} thawed"
    )
    return _say(record, recovery.fence(state, record.name))


def _explain(state: StateDirectory, record: Record) -> int:
    from migrate import recovery
    from migrate.recovery import Standing

    standing = recovery.ask(state, record)
    if standing not in (Standing.IN_DOUBT, Standing.LOST):
        return _say(record, standing)
    name, host = record.name, record.peer_host
    click.echo(
        f"pid {record.pid} ({printable(os.fsdecode(record.comm))}): {standing.value}.\n"
        f"It was handed over to {record.peer}, and no answer that settles it came.\n"
        f"- If {host} can be reached by you:  there: migrate resolve {name} --decline\n"
        f"  then here:  migrate resolve {name} --verdict TOKEN\n"
        f"- If {host} is off for good:  migrate resolve {name} --i-have-fenced {host}"
    )
    return Outcome.IN_DOUBT.exit_code


def _say(record: Record, standing: Standing) -> int:
    from migrate.recovery import Standing

    click.echo(
        f"pid {record.pid} ({printable(os.fsdecode(record.comm))}): {standing.value}."
    )
    settled = standing in (Standing.HERE, Standing.THERE)
    return 0 if settled else Outcome.IN_DOUBT.exit_code
