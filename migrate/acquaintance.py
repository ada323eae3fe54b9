"""``migrate identity``, ``migrate pair`` and ``migrate policy``: who is known here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from migrate.arguments import parsed, with_state_directory
from migrate.errors import Outcome, printable
from migrate.options import OptionError, Peer, parse_peer, parse_size

if TYPE_CHECKING:
    from transport.tls import Fingerprint

_DENIED = Outcome.REFUSED_BY_DESTINATION.exit_code


@click.command()
@click.option("--fingerprint", is_flag=True, help="Nothing but the fingerprint.")
def identity(fingerprint: bool) -> int:
    """Show who this host is to others; made when it is first needed."""
    from migrate import identity as ours
    from migrate.config_directory import NotOurs

    try:
        own = ours.load().fingerprint
    except NotOurs as error:
        return _failed(str(error))
    click.echo(own)
    if not fingerprint:
        click.echo(ours.words(own))
    return 0


def _fingerprint(text: str) -> Fingerprint:
    from migrate.peers import parse_fingerprint

    return parse_fingerprint(text)


@click.command()
@click.argument("where", metavar="[HOST:PORT]", required=False)
@click.option(
    "--fingerprint",
    metavar="FP",
    callback=parsed(_fingerprint),
    help="The key that the agent must have; nothing is asked then.",
)
@click.option(
    "--accept",
    metavar="FP",
    callback=parsed(_fingerprint),
    help="On the destination: let the host with this key bring processes here.",
)
@click.option(
    "--as",
    "users",
    metavar="USER",
    multiple=True,
    help="With --accept: processes of these users only.  [default: all but root]",
)
@with_state_directory
def pair(
    where: str | None,
    fingerprint: Fingerprint | None,
    accept: Fingerprint | None,
    users: tuple[str, ...],
) -> int:
    """Make two hosts known to each other; without arguments: who has asked to be."""
    from migrate.config_directory import NotOurs
    from transport.errors import TransportError

    if accept is not None and (where is not None or fingerprint is not None):
        raise click.UsageError("--accept stands alone, or with --as.")
    if users and accept is None:
        raise click.UsageError("--as goes with --accept.")
    if fingerprint is not None and where is None:
        raise click.UsageError("--fingerprint needs HOST:PORT.")
    try:
        if accept is not None:
            return _accept(accept, users)
        if where is None:
            return _list()
        return _meet(_peer(where), fingerprint)
    except (NotOurs, TransportError) as error:
        return _failed(str(error))


def _peer(text: str) -> Peer:
    try:
        return parse_peer(text)
    except OptionError as error:
        raise click.UsageError(printable(str(error))) from None


def _accept(fingerprint: Fingerprint, users: tuple[str, ...]) -> int:
    import msgspec

    from migrate import pairing, peers
    from migrate.policy import ANYBODY, Rule

    try:
        rules = [msgspec.convert({"user": user}, Rule) for user in users or [ANYBODY]]
    except msgspec.ValidationError:
        raise click.UsageError(f"{' '.join(users)!r} are not names of users.") from None
    name = peers.admit(fingerprint, tuple(rules))
    pairing.settled(fingerprint, _state())
    whom = " and ".join(users) if users else "every user but root"
    click.echo(f"{fingerprint} may bring processes of {whom} here (peers.d/{name}).")
    return 0


def _list() -> int:
    from migrate import pairing
    from migrate.identity import words

    asking = pairing.pending(_state())
    for one in asking:
        click.echo(
            f"{one.fingerprint} ({words(one.fingerprint)}) from {one.address}, "
            f"{one.age_s:.0f} s ago, with the code {one.code}"
        )
    if asking:
        click.echo("If the code is the one shown there: migrate pair --accept FP")
    else:
        click.echo("Nobody has asked lately.")
    return 0


def _meet(where: Peer, wanted: Fingerprint | None) -> int:
    from migrate import identity as ours
    from migrate import pairing, peers
    from migrate.doorway import ChangedKey

    pinned = peers.Peers.load().pinned(where)
    met = pairing.meet(where, ours.load())
    for known in (pinned, (wanted,) if wanted else ()):
        if known and met.fingerprint not in known:
            raise ChangedKey(where, known, met.fingerprint)
    ours.require_own_kind(met.certificate)
    click.echo(f"{where} has the key {met.fingerprint}", err=True)
    click.echo(f"({ours.words(met.fingerprint)}).", err=True)
    click.echo(f"Code: {met.code}", err=True)
    if wanted is None and not pinned:
        if not sys.stdin.isatty():
            return _failed(
                "Nobody is there to compare the code, so nothing is pinned. Give the "
                "key that it must have: --fingerprint FP."
            )
        click.echo("There, `migrate pair` shows the code that it has seen.", err=True)
        if not click.confirm("Is it the same?", default=False, err=True):
            return _failed("Nothing is pinned.")
    name = peers.pin(met.fingerprint, where)
    click.echo(f"Processes may go to {where} from here (peers.d/{name}).")
    return 0


def _state() -> Path:
    from migrate.state_directory import StateDirectory

    return StateDirectory().path


@click.group()
def policy() -> None:
    """What peers may do here."""


@policy.command("test")
@click.argument("peer")
@click.option("--user", required=True, help="Whose process it would be.")
@click.option("--exe", default="/bin/true", show_default=True, help="What it runs.")
@click.option(
    "--memory",
    default="1M",
    show_default=True,
    callback=parsed(parse_size),
    help="How much it has.",
)
@click.option("--out", is_flag=True, help="From here to there.  [default: to here]")
def policy_test(peer: str, user: str, exe: str, memory: int, out: bool) -> int:
    """Say whether PEER, a fingerprint or a name in peers.d, may; exit code 5 if not."""
    import pwd

    from migrate.config_directory import NotOurs
    from migrate.peers import Peers
    from migrate.policy import Member, decide
    from transport.tls import Fingerprint

    try:
        peers = Peers.load()
        named = peers.named(Fingerprint(peer))
    except NotOurs as error:
        return _failed(str(error))
    known = named.peer if named else peers.by_name.get(peer)
    if known is None:
        raise click.UsageError(f"Nobody called {printable(peer)} is known here.")
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise click.UsageError(f"There is no user {printable(user)} here.") from None
    decision = decide(
        [Member(frozenset({uid}), user, exe)],
        memory,
        allow=known.allow_out if out else known.allow_in,
        deny=() if out else known.deny_in,
    )
    said = "Allowed" if decision.allowed else "Denied"
    click.echo(f"{said}: {printable(decision.why)}")
    return 0 if decision.allowed else _DENIED


def _failed(sentence: str) -> int:
    click.echo(f"migrate: {printable(sentence)}", err=True)
    return Outcome.NOT_CONNECTED.exit_code
