"""A leaf holds a tree still, gives it back where it was, and leaves nothing."""

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.kernel import cgroups, procfs
from migrate.kernel.cgroups import Leaf
from precopy.errors import TaskVanished
from precopy.ids import Pid
from tests.live.victim import Victim, running

THREADS = (
    "for _ in range(3): threading.Thread(target=signal.pause, daemon=True).start()"
)


@pytest.fixture
def victim() -> Iterator[Victim]:
    with running(THREADS) as victim:
        yield victim


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    leaf = Leaf.create(cgroups.current(Pid(os.getpid())), _transaction())
    try:
        yield leaf
    finally:
        if Path(cgroups.directory(leaf.path)).exists():
            Leaf(leaf.path).dissolve()
        leaf.close()


def _transaction() -> str:
    return f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def test_a_leaf_adopts_a_process_with_all_its_threads(
    victim: Victim, leaf: Leaf
) -> None:
    home = cgroups.current(victim.pid)
    leaf.adopt(victim.pid)
    assert leaf.members() == (victim.pid,)
    assert cgroups.current(victim.pid) == leaf.path
    tids = Path(cgroups.directory(leaf.path), "cgroup.threads").read_text().split()
    assert {int(tid) for tid in tids} == {int(t) for t in procfs.threads(victim.pid)}
    assert len(tids) == 4
    leaf.dissolve()
    assert cgroups.current(victim.pid) == home
    assert not Path(cgroups.directory(leaf.path)).exists()
    assert victim.answers()


def test_what_is_frozen_stands_still_until_it_is_thawed(
    victim: Victim, leaf: Leaf
) -> None:
    leaf.adopt(victim.pid)
    assert not leaf.is_frozen() and leaf.is_populated()
    leaf.freeze()
    assert leaf.wait_frozen(timeout_s=10) and leaf.is_frozen()
    victim.ask()
    victim.child.send_signal(signal.SIGCONT)
    assert not victim.has_answered(within_s=0.05)
    leaf.thaw()
    assert victim.has_answered(within_s=10)
    assert not leaf.is_frozen()


def test_a_freeze_survives_whoever_asked_for_it(victim: Victim, leaf: Leaf) -> None:
    leaf.adopt(victim.pid)
    leaf.freeze()
    assert leaf.wait_frozen(timeout_s=10)
    leaf.close()
    again = Leaf(leaf.path)
    assert again.is_frozen() and again.members() == (victim.pid,)
    again.dissolve()
    assert victim.answers()


def test_dissolving_a_frozen_leaf_lets_the_process_run(
    victim: Victim, leaf: Leaf
) -> None:
    leaf.adopt(victim.pid)
    leaf.freeze()
    assert leaf.wait_frozen(timeout_s=10)
    leaf.dissolve()
    assert victim.answers()


def test_waiting_for_a_freeze_that_was_not_asked_for_ends(
    victim: Victim, leaf: Leaf
) -> None:
    leaf.adopt(victim.pid)
    assert not leaf.wait_frozen(timeout_s=0.02)


def test_kill_ends_what_is_frozen(victim: Victim, leaf: Leaf) -> None:
    leaf.adopt(victim.pid)
    leaf.freeze()
    assert leaf.wait_frozen(timeout_s=10)
    leaf.kill()
    assert leaf.wait_empty(timeout_s=10)
    assert victim.child.wait() == -signal.SIGKILL
    leaf.dissolve()
    assert not Path(cgroups.directory(leaf.path)).exists()


def test_each_goes_back_to_where_it_was(victim: Victim, leaf: Leaf) -> None:
    other_home = Leaf.create(cgroups.current(victim.pid), _transaction())
    try:
        with running() as other:
            other_home.adopt(other.pid)
            home = cgroups.current(victim.pid)
            leaf.adopt(victim.pid)
            leaf.adopt(other.pid)
            leaf.dissolve()
            assert cgroups.current(other.pid) == other_home.path
            assert cgroups.current(victim.pid) == home
    finally:
        other_home.dissolve()


def test_a_home_that_is_gone_is_replaced_by_the_one_above(victim: Victim) -> None:
    top = cgroups.current(victim.pid)
    home = Leaf.create(top, _transaction())
    home.adopt(victim.pid)
    leaf = Leaf.create(top, _transaction())
    leaf.adopt(victim.pid)
    home.dissolve()
    leaf.dissolve()
    assert cgroups.current(victim.pid) == top
    assert victim.answers()


def test_a_process_that_ended_is_vanished_and_the_leaf_dissolves(leaf: Leaf) -> None:
    with running() as victim:
        leaf.adopt(victim.pid)
    with pytest.raises(TaskVanished):
        leaf.adopt(victim.pid)
    with pytest.raises(TaskVanished):
        cgroups.current(victim.pid)
    leaf.dissolve()
    assert not Path(cgroups.directory(leaf.path)).exists()


def test_a_zombie_does_not_keep_a_leaf(leaf: Leaf) -> None:
    with running() as victim:
        leaf.adopt(victim.pid)
        victim.child.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        leaf.dissolve()
        assert not Path(cgroups.directory(leaf.path)).exists()


def test_two_leaves_cannot_have_one_name(leaf: Leaf) -> None:
    parent = leaf.path.rpartition("/")[0] or "/"
    with pytest.raises(FileExistsError):
        Leaf.create(parent, leaf.transaction)
    assert Path(cgroups.directory(leaf.path)).exists()


def test_a_leaf_that_cannot_be_opened_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transaction = _transaction()
    parent = cgroups.current(Pid(os.getpid()))

    def no_more_descriptors(self: Leaf, name: str, flags: int) -> int:
        raise OSError(24, name)

    monkeypatch.setattr(Leaf, "_open", no_more_descriptors)
    with pytest.raises(OSError):
        Leaf.create(parent, transaction)
    assert not [path for path in cgroups.leaves() if path.endswith(transaction)]


def test_the_sweep_takes_only_what_is_stale(victim: Victim, leaf: Leaf) -> None:
    stale = Leaf.create(leaf.path, _transaction())
    stale.adopt(victim.pid)
    stale.close()
    assert {leaf.path, stale.path} <= set(cgroups.leaves())
    assert cgroups.sweep(lambda path: path == stale.path) == (stale.path,)
    assert set(cgroups.leaves()) & {leaf.path, stale.path} == {leaf.path}
    assert cgroups.current(victim.pid) == leaf.path
    leaf.dissolve()
    leaf.dissolve()
