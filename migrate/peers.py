"""The hosts that this one knows by their keys, one file for each.

    fingerprint = "SHA256:9f86d0…"
    addresses = ["db2.example:7077", "10.0.0.7"]   # without a port: any

    [[allow_in]]                                   # what it may bring here
    user = "alice"
    exe = ["/usr/bin/python3*"]
    memory_max = "8G"

    [[allow_out]]                                  # what may go there
    user = "*"

A name that resolves elsewhere, or an address that changes hands, changes nothing: who
connects is known by the fingerprint alone, and who is connected to must have the one
that was pinned for the address.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from migrate import config_directory
from migrate.config_directory import NotOurs
from migrate.options import OptionError, Peer
from migrate.policy import ANYBODY, ROOT, Rule, Rules
from transport.tls import Fingerprint

FOLDER: Final = "peers.d"
PEERS_MAX: Final = 1000

_FINGERPRINT: Final = re.compile(r"SHA256:[0-9a-f]{64}", re.ASCII)
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")

Addresses: TypeAlias = tuple[Annotated[str, Meta(max_length=300)], ...]


class KnownPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file."""

    fingerprint: Annotated[str, Meta(pattern=r"\ASHA256:[0-9a-f]{64}\Z")]
    addresses: Annotated[Addresses, Meta(max_length=100)] = ()
    allow_in: Rules = ()
    deny_in: Rules = ()
    allow_out: Rules = ()

    def is_at(self, where: Peer) -> bool:
        """Whether it is pinned for that address."""
        return str(where) in self.addresses or where.host in self.addresses


@dataclass(frozen=True, slots=True)
class Known:
    """A peer, and what it is called here."""

    name: str
    peer: KnownPeer


@dataclass(frozen=True, slots=True)
class Peers:
    """All that are known, by the names of their files."""

    by_name: dict[str, KnownPeer]

    @classmethod
    def load(cls, folder: Path | None = None) -> "Peers":
        """Those of this host.

        Raises:
            NotOurs: a file is not to be trusted, or does not say what it should.
        """
        folder = (folder or config_directory.path()) / FOLDER
        try:
            config_directory.require_ours(folder)
            files = sorted(folder.glob("*.toml"))
        except FileNotFoundError:
            files = []
        if len(files) > PEERS_MAX:
            raise NotOurs(f"{folder} has {len(files)} peers; {PEERS_MAX} are read.")
        known: dict[str, KnownPeer] = {}
        for file in files:
            try:
                known[file.stem] = parse(config_directory.read_ours(file), file)
            except FileNotFoundError:
                continue  # it has been taken away meanwhile
        return cls(known)

    def named(self, fingerprint: Fingerprint) -> Known | None:
        """Whose key it is, and what is known of him.

        Raises:
            NotOurs: two files have it; which of them holds is not ours to say.
        """
        found = [it for it in self.by_name.items() if it[1].fingerprint == fingerprint]
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise NotOurs(f"{names} in {FOLDER} are of one fingerprint: merge them.")
        return Known(*found[0]) if found else None

    def pinned(self, where: Peer) -> tuple[Fingerprint, ...]:
        """Who may answer at that address."""
        return tuple(
            Fingerprint(peer.fingerprint)
            for peer in self.by_name.values()
            if peer.is_at(where)
        )


def parse(text: str, file: Path) -> KnownPeer:
    """What a file says.

    Raises:
        NotOurs: not what it should.
    """
    try:
        return msgspec.convert(tomllib.loads(text), KnownPeer)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise NotOurs(f"{file} cannot be read: {error}.") from error


def parse_fingerprint(text: str) -> Fingerprint:
    """As ``migrate identity`` prints it.

    Raises:
        OptionError: it is none.
    """
    if not _FINGERPRINT.fullmatch(text):
        raise OptionError(
            f"{text!r} is not a fingerprint: SHA256: and 64 hex digits, as "
            "`migrate identity --fingerprint` prints them on the other host."
        )
    return Fingerprint(text)


def pin(fingerprint: Fingerprint, where: Peer, folder: Path | None = None) -> str:
    """It is what answers at ``where``, and everything may go there that may leave; the
    name of its file.

    Raises:
        NotOurs: the file cannot be written, or another key is pinned for the address.
    """
    folder = folder or config_directory.path()
    known = Peers.load(folder)
    for other in known.pinned(where):
        if other != fingerprint:
            raise NotOurs(f"{where} is pinned to {other} already.")
    found = known.named(fingerprint) or Known(
        _free_name(known, _NOT_IN_NAMES.sub("_", where.host)), KnownPeer(fingerprint)
    )
    peer = found.peer
    if not peer.is_at(where):
        addresses = (*peer.addresses, str(where))
        peer = msgspec.structs.replace(peer, addresses=addresses)
    if not peer.allow_out:
        peer = msgspec.structs.replace(peer, allow_out=(Rule(ANYBODY), Rule(ROOT)))
    _write(folder, found.name, peer)
    return found.name


def admit(
    fingerprint: Fingerprint, rules: tuple[Rule, ...], folder: Path | None = None
) -> str:
    """It may bring here what ``rules`` say, and no longer what was said before; the
    name of its file.

    Raises:
        NotOurs: the file cannot be written.
    """
    folder = folder or config_directory.path()
    known = Peers.load(folder)
    found = known.named(fingerprint) or Known(
        _free_name(known, "key-" + fingerprint.removeprefix("SHA256:")[:16]),
        KnownPeer(fingerprint),
    )
    _write(folder, found.name, msgspec.structs.replace(found.peer, allow_in=rules))
    return found.name


def _free_name(known: Peers, name: str) -> str:
    while name in known.by_name:
        name += "-2"
    return name


def _write(folder: Path, name: str, peer: KnownPeer) -> None:
    config_directory.make(folder / FOLDER)
    file = folder / FOLDER / f"{name}.toml"
    text = text_of(peer)
    assert parse(text, file) == peer, text
    config_directory.write_ours(file, text, anew=False)


def text_of(peer: KnownPeer) -> str:
    """The file that says this."""
    lines = [
        f"fingerprint = {_quoted(peer.fingerprint)}",
        f"addresses = {_listed(peer.addresses)}",
    ]
    for table in ("allow_in", "deny_in", "allow_out"):
        for rule in getattr(peer, table):
            lines += ["", f"[[{table}]]", *_lines_of(rule)]
    return "\n".join(lines) + "\n"


def _lines_of(rule: Rule) -> Iterator[str]:
    yield f"user = {_quoted(rule.user)}"
    yield f"exe = {_listed(rule.exe)}"
    if rule.memory_max is not None:
        yield f"memory_max = {_quoted(rule.memory_max)}"
    if rule.processes_max is not None:
        yield f"processes_max = {rule.processes_max}"
    if rule.any_groups:
        yield "any_groups = true"
    if rule.slice is not None:
        yield f"slice = {_quoted(rule.slice)}"


def _listed(texts: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


def _quoted(text: str) -> str:
    # What JSON escapes, TOML escapes alike, but for DEL, which TOML does not take raw.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
