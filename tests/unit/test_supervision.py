"""Who would start another one: told by the name of a parent, or by systemd."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrate.preflight import supervision
from migrate.preflight.supervision import Unit
from precopy.ids import Pid


@contextmanager
def child_of(name: str, folder: Path) -> Iterator[Pid]:
    """A process whose parent is called that: a shell that waits for it."""
    shutil.copy("/bin/sh", folder / name)
    script = "sleep 600 <&- >&- 2>&- & echo $!; wait"
    with subprocess.Popen(
        [folder / name, "-c", script], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = Pid(int(parent.stdout.readline()))
        try:
            yield pid
        finally:
            subprocess.run(["kill", str(pid)], check=True)  # its parent ends then


@pytest.mark.parametrize("name", ["runsv", "supervise-daemon"])
def test_a_supervisor_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    with child_of(name, tmp_path) as pid:
        (reason,) = supervision.reasons(pid)
        assert reason.kind == supervision.KIND
        assert reason.pid == pid
        assert f"The parent of pid {pid}, {name[:15]} (pid " in reason.message
        assert supervision.OPTION in reason.message


def test_a_shell_is_none(tmp_path: Path) -> None:
    with child_of("sh", tmp_path) as pid:
        assert supervision.reasons(pid) == []


def test_who_is_not_there_has_none() -> None:
    assert supervision.reasons(Pid(1 << 22)) == []


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/nginx.service\n", Unit("nginx.service")),
        ("0::/system.slice/nginx.service/below\n", Unit("nginx.service")),
        (
            "1:name=systemd:/system.slice/nginx.service\n0::/\n",
            Unit("nginx.service"),
        ),
        (
            "0::/user.slice/user-7.slice/user@7.service/app.slice/a@b.service\n",
            Unit("a@b.service", 7),
        ),
        ("4:memory:/system.slice/nginx.service\n0::/\n", None),
        ("0::/user.slice/user-7.slice/session-3.scope\n", None),
        ("0::/odd:name\n", None),
    ],
)
def test_a_unit_is_told_by_the_cgroup(cgroups: str, unit: Unit | None) -> None:
    assert supervision.unit_of(cgroups) == unit


@pytest.mark.parametrize(
    ("said", "is_refused"),
    [
        ("MainPID=4711\nRestart=always\n", True),
        ("Restart=on-failure\nMainPID=4712\n", True),
        ("MainPID=4711\nRestart=no\n", False),
        ("MainPID=4711\nRestart=on-success\n", False),
        ("MainPID=1\nRestart=always\n", False),
        ("MainPID=0\nRestart=always\n", False),
        ("", False),
    ],
)
def test_a_main_process_is_started_again(said: str, is_refused: bool) -> None:
    """If it goes along, and being killed is a reason to start it."""
    message = supervision.judge(Unit("a.service"), [Pid(4711), Pid(4712)], said)
    assert (message is not None) == is_refused
    assert message is None or "a.service" in message
