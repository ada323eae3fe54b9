"""The journal: what was written is read again; what is not whole is not believed."""

import fcntl
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import journal
from migrate.journal import SLOT_BYTES, Journal, Record
from migrate.ownership import DestinationState, JournalFailed, SourceState, State
from migrate.state_directory import CannotKeep, Side, StateDirectory
from tests.states.disks import EMPTY, RECORD, Disk, Fails


def record(state: State) -> Record:
    return msgspec.structs.replace(RECORD, state_number=state.value)


def empty() -> Disk:
    return Disk([EMPTY, EMPTY], [EMPTY, EMPTY])


@given(
    st.builds(
        Record,
        transaction=st.binary(min_size=16, max_size=16),
        state_number=st.sampled_from([*SourceState]).map(lambda state: state.value),
        boot=st.binary(min_size=16, max_size=16),
        peer_host=st.text(max_size=255),
        peer_port=st.integers(0, 65535),
        epoch=st.binary(max_size=16),
        pid=st.integers(1, 1 << 22),
        start_ticks=st.integers(0, 2**63),
        pid_namespace=st.integers(0, 2**32),
        leaf=st.binary(max_size=500),
        keeper=st.integers(1, 1 << 22),
        written_s=st.integers(0, 2**40),
        comm=st.binary(max_size=16),
    ),
    st.integers(1, 2**63),
)
def test_a_record_comes_back_as_it_was(kept: Record, number: int) -> None:
    slot = journal.encode(kept, number)
    assert len(slot) == SLOT_BYTES
    assert journal.decode(slot) == (number, kept)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_is_no_record(where: int, change: int) -> None:
    """Anywhere in what a record uses."""
    slot = bytearray(journal.encode(RECORD, 7))
    used = len(bytes(slot).rstrip(b"\0"))
    slot[where % used] ^= change
    assert journal.decode(bytes(slot)) is None


@given(st.integers(0, 80))
def test_a_torn_slot_leaves_the_record_before_it(cut: int) -> None:
    """The new one is whole or is none; in the other slot is the one before."""
    disk = empty()
    kept = Journal(disk)
    for state in (SourceState.PRE, SourceState.FROZEN):
        kept.write(record(state))
    before = list(disk.cache)
    kept.write(record(SourceState.GO))
    torn = [new[:cut] + old[cut:] for new, old in zip(disk.cache, before, strict=True)]
    found = Journal(Disk(torn, torn)).record
    assert found is not None
    assert found.state in (SourceState.FROZEN, SourceState.GO)


def test_the_youngest_record_rules() -> None:
    """In whichever slot it lies."""
    disk = empty()
    kept = Journal(disk)
    for state in (*SourceState, *SourceState):
        kept.write(record(state))
        found = Journal(disk).record
        assert found is not None
        assert found.state is state


@pytest.mark.parametrize("fails", [Fails.AT_ONCE, Fails.LATE])
def test_a_failed_write_is_never_believed_later(fails: Fails) -> None:
    """What comes after it replaces it, and not the last good record."""
    disk = empty()
    kept = Journal(disk)
    kept.write(record(DestinationState.READY))
    disk.fails = fails
    with pytest.raises(JournalFailed):
        kept.write(record(DestinationState.ACCEPTED), durable=True)
    disk.fails = Fails.NOT
    assert kept.record == record(DestinationState.READY)
    kept.write(record(DestinationState.DECLINED))
    states = {found[1].state for slot in disk.cache if (found := journal.decode(slot))}
    assert states == {DestinationState.READY, DestinationState.DECLINED}
    assert Journal(disk).record == record(DestinationState.DECLINED)


def test_a_record_that_is_too_long_is_not_cut() -> None:
    with pytest.raises(ValueError, match="fits no slot"):
        journal.encode(msgspec.structs.replace(RECORD, leaf=b"x" * 5000), 1)


def test_a_journal_has_one_keeper(tmp_path: Path) -> None:
    """Who is alive has it; nobody else gets it, and all may look."""
    state = StateDirectory(tmp_path)
    with state.begin(Side.SOURCE, RECORD) as kept:
        assert state.take(Side.SOURCE, RECORD.name) is None
        assert state.look(Side.SOURCE, RECORD.name) == (RECORD, True)
        kept.journal.write(record(SourceState.GO))
    found, is_kept = state.look(Side.SOURCE, RECORD.name)
    assert (found, is_kept) == (record(SourceState.GO), False)
    taken = state.take(Side.SOURCE, RECORD.name)
    assert taken is not None
    with taken:
        assert taken.journal.record == record(SourceState.GO)
        taken.remove()
    with pytest.raises(FileNotFoundError):
        state.take(Side.SOURCE, RECORD.name)
    assert state.names(Side.SOURCE) == ()


def test_a_journal_has_its_blocks_from_the_beginning(tmp_path: Path) -> None:
    """No record meets a full disk."""
    state = StateDirectory(tmp_path)
    with state.begin(Side.DESTINATION, RECORD):
        stat = (tmp_path / "arrivals" / RECORD.name).stat()
    assert stat.st_size == 2 * SLOT_BYTES
    assert stat.st_blocks * 512 >= 2 * SLOT_BYTES


def test_an_epoch_is_made_once(tmp_path: Path) -> None:
    """It is another where the directory is another."""
    one, again = StateDirectory(tmp_path / "one"), StateDirectory(tmp_path / "one")
    assert one.epoch == again.epoch
    assert len(one.epoch) == journal.EPOCH_BYTES
    assert StateDirectory(tmp_path / "two").epoch != one.epoch


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotKeep, match="--state-dir"):
        StateDirectory(tmp_path / "file")


def test_no_lock_outlives_its_keeper(tmp_path: Path) -> None:
    """It is not handed down to a program that the keeper starts."""
    state = StateDirectory(tmp_path)
    with state.begin(Side.SOURCE, RECORD):
        path = str(tmp_path / "departures" / RECORD.name)
        mine = [
            int(fd) for fd in os.listdir("/proc/self/fd") if _is_open_on(int(fd), path)
        ]
        assert len(mine) == 1
        assert fcntl.fcntl(mine[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def _is_open_on(fd: int, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == path
    except FileNotFoundError:
        return False
