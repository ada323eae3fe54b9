"""The leak oracle notices what it is there to notice."""

import os
import select
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks


def left(before: leaks.Snapshot) -> str:
    return "\n".join(leaks.difference(before, leaks.snapshot()))


def test_nothing_is_reported_when_nothing_was_left() -> None:
    """Two looks in a row agree, also with a child that came and went between."""
    before = leaks.snapshot()
    subprocess.run(["true"], check=True)
    assert left(before) == ""


def test_a_child_that_was_not_reaped_is_noticed() -> None:
    """A zombie is a process too."""
    before = leaks.snapshot()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        assert f"processes: {child.pid} 'cat'" in left(before)
        child.communicate()
        assert left(before) == ""
    finally:
        child.kill()
        child.wait()


def test_one_that_was_there_before_may_do_something_else_now() -> None:
    """It ran, and sleeps: it is still the same."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        before = leaks.snapshot()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert left(before) == ""
        child.send_signal(signal.SIGCONT)


def test_an_orphan_is_noticed_by_its_environment() -> None:
    """Its parent has gone, and it has been given to another."""
    before = leaks.snapshot()
    said = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null & echo $!"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    try:
        assert f"processes: {int(said)} 'sleep'" in left(before)
    finally:
        os.kill(int(said), 9)
    assert leaks.left_since(before, patience_s=10) == ()


def test_a_stranger_is_not_accused() -> None:
    """Neither a process of others nor what bears its pid in its name."""
    before = leaks.snapshot()
    environment = {k: v for k, v in os.environ.items() if k != leaks.TOKEN_NAME}
    said = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null & echo $!"],
        stdout=subprocess.PIPE,
        check=True,
        env=environment,
    ).stdout
    here = Path("/proc/self/ns/pid").stat().st_ino
    theirs = Path(f"/tmp/migrate-leaks-{here}-{int(said)}-1")
    theirs.touch()
    try:
        assert left(before) == ""
        pidfd = os.pidfd_open(int(said))
        os.kill(int(said), 9)
        select.select([pidfd], [], [])
        os.close(pidfd)
        assert f"files: {theirs}" in left(before), "nobody owns it any more"
    finally:
        theirs.unlink()


def test_a_descriptor_is_noticed() -> None:
    """With its number and what it is open on."""
    before = leaks.snapshot()
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert left(before) == f"descriptors: {fd} is /dev/null"
    finally:
        os.close(fd)


def test_a_thread_is_noticed() -> None:
    """A tracer thread that nobody joined would hold its tracees stopped."""
    before = leaks.snapshot()
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait, name="tracer")
    thread.start()
    try:
        assert "threads: tracer" in left(before)
    finally:
        enough.set()
        thread.join()


def test_a_temporary_file_is_noticed(tmp_path: Path) -> None:
    """What pytest itself keeps for us is not."""
    before = leaks.snapshot()
    ours = Path(f"/tmp/migrate-leaks-{os.getpid()}")
    ours.touch()
    (tmp_path / "migrate-kept").touch()
    try:
        assert left(before) == f"files: {ours}"
    finally:
        ours.unlink()


def test_a_pid_of_another_namespace_excuses_nothing() -> None:
    """There is a process 1 here, but it is not the one that is meant."""
    before = leaks.snapshot()
    ours = Path("/tmp/migrate-leaks-1-1-1")
    ours.touch()
    try:
        assert left(before) == f"files: {ours}"
    finally:
        ours.unlink()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One that bears nobody's pid, right below the cgroup2 mount."""
    top = next(
        Path(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    )
    made = top / f"migrate-leaks{uuid.uuid4().hex}"
    yield made
    made.rmdir()


@pytest.mark.live
def test_a_cgroup_is_noticed(cgroup: Path) -> None:
    """Wherever below the cgroup2 mount it was made; with one of ours in it as well."""
    before = leaks.snapshot()
    cgroup.mkdir()
    assert f"cgroups: {cgroup}" in left(before)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        (cgroup / "cgroup.procs").write_text(str(child.pid))
        assert f"cgroups: {cgroup}" in left(before)


@pytest.mark.live
def test_a_cgroup_of_strangers_is_not_ours(cgroup: Path) -> None:
    """Nobody in it is of our family; once empty it is nobody else's either."""
    environment = {k: v for k, v in os.environ.items() if k != leaks.TOKEN_NAME}
    before = leaks.snapshot()
    cgroup.mkdir()
    said = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null & echo $!"],
        stdout=subprocess.PIPE,
        check=True,
        env=environment,
    ).stdout
    (cgroup / "cgroup.procs").write_text(str(int(said)))
    try:
        assert str(cgroup) not in left(before)
    finally:
        (cgroup / "cgroup.kill").write_text("1")
        while b"populated 1" in (cgroup / "cgroup.events").read_bytes():
            with (cgroup / "cgroup.events").open("rb") as events:
                watch = select.poll()
                watch.register(events, select.POLLPRI)
                watch.poll(100)
    assert f"cgroups: {cgroup}" in left(before)


@pytest.mark.live
def test_a_mount_is_noticed(tmp_path: Path) -> None:
    """One that survived its maker would pin the file system below it."""
    before = leaks.snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        assert left(before) == f"mounts: {tmp_path} (tmpfs)"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
