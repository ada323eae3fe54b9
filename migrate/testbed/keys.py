"""Keys for the hosts of a bed: each has its own, and knows those of the others."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from migrate import config_directory, identity, peers
from migrate.peers import KnownPeer
from migrate.policy import ANYBODY, ROOT, Rule
from transport.tls import Fingerprint

if TYPE_CHECKING:
    from migrate.testbed.host import Host

# Private to each host, and gone with it.
FOLDER: Final = "/run/migrate-keys"


class Keys:
    """Who of the hosts has which key."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Path, Fingerprint]] = {}

    def give(self, host: "Host") -> None:
        """Make one for ``host``, and pin it and those of the others to one another."""
        folder = Path(f"/proc/{host.pid}/root{FOLDER}")
        own = identity.load(folder)
        for address, (elsewhere, fingerprint) in self._known.items():
            if elsewhere.exists():  # not where that host has been taken away
                _pin(elsewhere, host.address, own.fingerprint)
            _pin(folder, address, fingerprint)
        self._known[host.address] = folder, own.fingerprint


def _pin(folder: Path, address: str, fingerprint: Fingerprint) -> None:
    config_directory.make(folder / peers.FOLDER)
    everybody = (Rule(ANYBODY, any_groups=True), Rule(ROOT))
    text = peers.text_of(
        KnownPeer(fingerprint, (address,), allow_in=everybody, allow_out=everybody)
    )
    file = folder / peers.FOLDER / f"{address}.toml"
    config_directory.write_ours(file, text, anew=True)
