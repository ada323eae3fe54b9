"""Who would start another one in its place when it has ended here.

What arrived would then run twice, though each copy only once: nothing in a hand-over
can see that, so it is looked for before. systemd tells which process is the main one
of a unit, and when it starts that again; other supervisors are known by their names.
"""

import os
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from migrate.errors import Reason, printable
from migrate.kernel import lineage, procfs
from migrate.patience import patient
from precopy.errors import TaskVanished
from precopy.ids import Pid

KIND: Final = "supervisor"
OPTION: Final = "--supervised"
# As the kernel has them: 15 bytes of the name of the program (proc_pid_comm(5)).
SUPERVISORS: Final = frozenset(
    {
        *("runsv", "supervise", "s6-supervise", "perpd"),
        *("supervisord", "circusd", "supervise-daemo", "dinit", "procd"),
    }
)
_ANSWER_S: Final = patient(5.0)
_BOOTED: Final = "/run/systemd/system"  # sd_booted(3)
# When a main process was killed by a signal, as ours will be (systemd.service(5)).
_STARTS_AGAIN: Final = frozenset({"always", "on-failure", "on-abnormal", "on-abort"})
_USERS_OWN: Final = re.compile(r"/user@(\d+)\.service/")
_UNLESS: Final = f"or take that on yourself ({OPTION})."


@dataclass(frozen=True, slots=True)
class Unit:
    """A service of systemd, as a cgroup is named after it."""

    name: str
    user: int | None = None  # whose own manager has it; None: the system's

    def command(self) -> list[str]:
        """What tells of it, one property a line."""
        whose = ["--user"] if self.user is not None else []
        asked = "--property=MainPID,Restart"
        return ["systemctl", *whose, "show", asked, "--", self.name]

    def environment(self) -> dict[str, str]:
        """In which it is asked: a user's manager is found by his directory."""
        if self.user is None:
            return dict(os.environ)
        return {**os.environ, "XDG_RUNTIME_DIR": f"/run/user/{self.user}"}


class _Silent(Exception):
    """systemd does not answer; why."""


def reasons(pid: Pid) -> list[Reason]:
    """Why its end here would not be the end of it; nothing if there is no such pid."""
    try:
        family = [relative.pid for relative in lineage.family(pid)]
        parent = procfs.stat(pid).parent
        unit = unit_of(procfs.read(pid, "cgroup").decode(errors="replace"))
        name = procfs.stat(parent).name if parent > 1 else ""
    except TaskVanished:
        return []
    found = []
    if name in SUPERVISORS:
        found.append(
            f"The parent of pid {pid}, {name} (pid {parent}), starts another one when "
            f"it ends. Have it not do so, {_UNLESS}"
        )
    elif unit and os.path.isdir(_BOOTED):
        found += _of_unit(unit, family)
    return [Reason(KIND, message, pid) for message in found]


def unit_of(cgroups: str) -> Unit | None:
    """The innermost service that /proc/PID/cgroup names."""
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        services = [part for part in path.split("/") if part.endswith(".service")]
        # systemd names its own hierarchy, and the unified one (cgroups(7)).
        if controllers not in ("", "name=systemd") or not services:
            continue
        user = _USERS_OWN.search(path)
        return Unit(services[-1], int(user[1]) if user else None)
    return None


def judge(unit: Unit, family: Collection[Pid], said: str) -> str | None:
    """What is in the way, when that is what systemd says of the unit."""
    told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    main, restart = told.get("MainPID", ""), told.get("Restart", "")
    if not main.isdigit() or int(main) not in family or restart not in _STARTS_AGAIN:
        return None
    edit = "systemctl --user" if unit.user is not None else "systemctl"
    return (
        f"pid {main} is the main process of {printable(unit.name)}, and systemd starts "
        f"another one when it ends here (Restart={restart}). Set Restart=no ({edit} "
        f"edit --runtime), {_UNLESS}"
    )


def _of_unit(unit: Unit, family: Collection[Pid]) -> list[str]:
    try:
        message = judge(unit, family, _asked(unit))
    except _Silent as silent:
        message = (
            f"It belongs to {printable(unit.name)}, and it is not known whether "
            f"systemd starts another one: {silent}. Look for Restart= there, {_UNLESS}"
        )
    return [message] if message else []


def _asked(unit: Unit) -> str:
    try:
        done = subprocess.run(
            unit.command(),
            env=unit.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise _Silent("there is no systemctl") from error
    except subprocess.TimeoutExpired as error:
        raise _Silent("systemctl took too long") from error
    if done.returncode != 0:
        raise _Silent(printable(done.stderr.decode(errors="replace").strip()))
    return done.stdout.decode(errors="replace")
