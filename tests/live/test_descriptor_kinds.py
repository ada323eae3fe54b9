"""What one process has open, another gets just so, kind by kind.

Goal: dump() and restore() of each kind, and of the table, without the rest of a move.
Method: a scenario arranges; a second run of it, bare, is given what dump() says of the
first, and then checks itself. The kernel is asked, not our records.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from migrate import descriptors
from migrate.descriptors import Descriptors
from migrate.kernel import procfs
from migrate.kernel.pidfds import PidFd
from migrate.kernel.tracee import Tracee
from migrate.kinds import file_lock, unix_socket
from migrate.kinds.kind import CannotCarry, Source, Target, settle
from precopy.ids import Pid
from tests.live.scenarios.harness import Scenario, tell_moved
from tests.live.victim import running

SCENARIOS = (
    "regular_file",
    "directory",
    "device",
    "pipe",
    "eventfd",
    "timerfd",
    "signalfd",
    "epoll",
    "unix_socket",
    "inotify",
)


@contextmanager
def looked_at(pid: int) -> Iterator[Source]:
    """The process, stopped, for as long as the block lasts."""
    with ExitStack() as stack:
        tracee = stack.enter_context(Tracee.seize(Pid(pid)))
        remote = stack.enter_context(tracee.remote())
        pidfd = stack.enter_context(PidFd.open(Pid(pid)))
        yield Source(Pid(pid), tracee, remote, pidfd, procfs.fds(Pid(pid)))


@contextmanager
def being_built(pid: int) -> Iterator[Target]:
    """The process, stopped, as a skeleton."""
    with looked_at(pid) as s:
        target = Target(s.pid, s.tracee, s.remote, s.tracee.memory, s.pidfd)
        yield target
        settle(target.joints)


def dump(pid: int) -> Descriptors:
    """The table of a running process."""
    with looked_at(pid) as source:
        return descriptors.dump(source)


@contextmanager
def pair(name: str, folder: Path) -> Iterator[tuple[Scenario, Scenario]]:
    """A scenario that has arranged everything, and a bare one; both wait.

    They have the same working folder, but other FIFOs to talk through.
    """
    with ExitStack() as stack:
        full = stack.enter_context(Scenario(name, folder))
        bare = stack.enter_context(Scenario(name, folder, "bare"))
        yield full, bare


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_was_arranged_is_there(name: str, tmp_path: Path) -> None:
    """A process that is given the table finds everything as the other left it."""
    with pair(name, tmp_path) as (full, bare):
        full.ready()
        there = bare.ready()
        table = dump(full.process.pid)
        with being_built(bare.process.pid) as target:
            descriptors.restore(table, target)
        tell_moved(bare.process.pid, there)
        assert bare.verdict() == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_looking_changes_nothing(name: str, tmp_path: Path) -> None:
    """The process that was looked at twice still finds everything itself."""
    with Scenario(name, tmp_path) as full:
        ready = full.ready()
        dump(full.process.pid)
        dump(full.process.pid)
        tell_moved(full.process.pid, ready)
        assert full.verdict() == []


@pytest.mark.parametrize("first", SCENARIOS)
@pytest.mark.parametrize("distance", [0, 1, 3])
def test_the_second_look_is_what_counts(
    first: str, distance: int, tmp_path: Path
) -> None:
    """A table that stands gives way to a later one, however little they share."""
    second = SCENARIOS[(SCENARIOS.index(first) + distance) % len(SCENARIOS)]
    (tmp_path / "before").mkdir()
    with pair(second, tmp_path) as (full, bare):
        with Scenario(first, tmp_path / "before") as other:
            other.ready()
            before = dump(other.process.pid)
            there = bare.ready()
            with being_built(bare.process.pid) as target:
                descriptors.restore(before, target)
        full.ready()
        table = dump(full.process.pid)
        with being_built(bare.process.pid) as target:
            descriptors.restore(table, target, before)
        tell_moved(bare.process.pid, there)
        assert bare.verdict() == []


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        ("a, b = pair(); socket.send_fds(a, [b'x'], [0])", "descriptors on their way"),
        ("a, b = pair(); a.send(b'xy', socket.MSG_OOB)", "out of band"),
        ("a, b = pair(); a.send(b'y', socket.MSG_OOB)", "out of band"),
        ("a, b = pair(2); a.send(b'')", "an empty packet"),
        ("a, b = pair(2); a.send(b''); b.recv(1, 2)", "an empty packet"),
        ("a, b = pair(2); a.send(b'x'); b.setsockopt(1, 16, 1)", "who has sent"),
    ],
)
def test_what_lies_in_a_socket_and_cannot_go(fill: str, words: str) -> None:
    """It is refused, and lies there still: a second look says the same."""
    arrange = (
        "import socket\n"
        "pair = lambda sort=1: socket.socketpair(socket.AF_UNIX, sort)\n"
        f"{fill}\nos.dup2(b.fileno(), 77)"
    )
    with running(arrange) as victim:
        for _ in "first", "second":
            with looked_at(victim.pid) as source:
                (view,) = [view for view in source.views if view.number == 77]
                with pytest.raises(CannotCarry, match=words):
                    unix_socket.dump(source, view)
        assert victim.answers()


def test_locks_go_over(tmp_path: Path) -> None:
    """The copy holds every lock, once the original has given them up."""
    with pair("file_lock", tmp_path) as (full, bare):
        full.ready()
        there = bare.ready()
        with looked_at(full.process.pid) as source:
            table = descriptors.dump(source)
            locks = file_lock.dump(source)
            assert locks is not None
            with being_built(bare.process.pid) as target:
                descriptors.restore(table, target)
                with pytest.raises(CannotCarry, match="held by another process"):
                    file_lock.restore(locks, target)
                file_lock.release(source, locks)
                file_lock.restore(locks, target)
        tell_moved(bare.process.pid, there)
        assert bare.verdict() == []


def test_locks_come_back(tmp_path: Path) -> None:
    """Where the move is called off, the original holds its locks as before."""
    with Scenario("file_lock", tmp_path) as full:
        ready = full.ready()
        with looked_at(full.process.pid) as source:
            locks = file_lock.dump(source)
            assert locks is not None
            file_lock.release(source, locks)
            assert file_lock.reacquire(source.remote, locks) == []
        tell_moved(full.process.pid, ready)
        assert full.verdict() == []


def test_what_was_told_and_not_read_stays(tmp_path: Path) -> None:
    """Events of inotify cannot be put back, so they are not taken out."""
    with Scenario("inotify", tmp_path) as full:
        full.ready()
        (tmp_path / "watched" / "new").touch()
        with pytest.raises(CannotCarry, match="was not read yet"):
            dump(full.process.pid)
