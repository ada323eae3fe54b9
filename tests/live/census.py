"""Who and what is in the cgroup of a host, which may change while we look."""

import fnmatch
import os
from pathlib import Path

from migrate.testbed import Host


def processes(host: Host) -> set[int]:
    """All that live on it but zombies, as we number them."""
    found: set[int] = set()
    # Not rglob(): it gives up at the first folder that has gone.
    for folder, _, _ in os.walk(host.cgroup):
        try:
            text = Path(folder, "cgroup.procs").read_text()
        except OSError:
            continue  # that cgroup has gone
        found |= {int(pid) for pid in text.split()}
    return found


def leaves(host: Host) -> list[Path]:
    """The cgroups on it that moves have made."""
    return [
        Path(folder, name)
        for folder, names, _ in os.walk(host.cgroup)
        for name in fnmatch.filter(names, "migrate-*")
    ]
