"""Where the journals lie, and who may touch which.

    state directory       one for each host; nothing in it may move to another
    ├── identity          the epoch of our journals, and the key that signs for them
    ├── lock              held while a departure begins
    ├── audit.log         what operators decided against the protocol
    ├── departures/TX     our journal of a process that leaves
    ├── departures/.TX.lent   what has to be given back to it before it runs again
    └── arrivals/TX       our journal of one that comes

A journal is locked by its keeper, and flock(2) ends with the process that holds it: one
that nobody has locked is anybody's to finish (see ``recovery``). So several agents and
commands of one host may share the directory.

Hosts may share a kernel, as those of a test bed do, and even this directory: whatever
belongs to another pid namespace is passed over.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import Final, Self

from migrate import verdict_token
from migrate.journal import EPOCH_BYTES, SLOT_BYTES, Journal, Record
from migrate.ownership import JournalFailed

DEFAULT: Final = "/var/lib/migrate"
VARIABLE: Final = "MIGRATE_STATE_DIR"
KEY_BYTES: Final = 32

_FILE_BYTES: Final = 2 * SLOT_BYTES


class Side(Enum):
    """Which side a journal is; the value is its folder."""

    SOURCE = "departures"
    DESTINATION = "arrivals"


class CannotKeep(Exception):
    """No journal can be kept; the message is a sentence that says why."""


class File:
    """The slots of a journal in a file, locked by us. Owns the descriptor."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def read(self) -> bytes:
        """Both slots, as they are now."""
        return os.pread(self._fd, _FILE_BYTES, 0)

    def write(self, offset: int, data: bytes) -> None:
        """One system call; the page cache takes it whole."""
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(f"{self._path} was cut short")

    def sync(self) -> None:
        """fdatasync(2)."""
        os.fdatasync(self._fd)

    def remove(self) -> None:
        """The journal has had its time."""
        self.beside.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    @property
    def beside(self) -> Path:
        """Where something of any length is kept that goes with the journal."""
        return self._path.with_name(f".{self._path.name}.lent")

    def close(self) -> None:
        """Give up the lock: who comes next may go on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Kept:
    """A journal that is ours to write until ``close``; a context manager."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.journal: Final = Journal(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def entrust(self, lent: bytes) -> None:
        """Keep what whoever goes on has to give back to the process.

        Not synced: the process does not outlive this kernel either.

        Raises:
            OSError: there is no room.
        """
        self._file.beside.write_bytes(lent)

    def entrusted(self) -> bytes | None:
        """What is to be given back, if anything is."""
        try:
            return self._file.beside.read_bytes()
        except FileNotFoundError:
            return None

    def given_back(self) -> None:
        """Nothing is to be given back any more."""
        self._file.beside.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget the transaction."""
        self._file.remove()

    def close(self) -> None:
        """Let somebody else go on with it."""
        self._file.close()


class StateDirectory:
    """The journals of this host."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open it; it is made where it is missing.

        Raises:
            CannotKeep: it cannot be made, or not be written.
        """
        chosen = path or os.environ.get(VARIABLE) or DEFAULT
        self.path: Final = Path(chosen).absolute()
        try:
            for side in Side:
                folder = self.path / side.value
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.epoch: Final = self._identity()
        except OSError as error:
            raise CannotKeep(
                f"No journal can be kept in {self.path}: {error.strerror}. Give "
                f"another directory with --state-dir, or in {VARIABLE}."
            ) from error

    def begin(self, side: Side, record: Record) -> Kept:
        """A new journal with ``record`` in it, ours to write.

        At the destination it is on the disk before this returns, blocks and name.

        Raises:
            CannotKeep: there is no room, or there is one of that name.
        """
        path = self.path / side.value / record.name
        # Under its name only when it is locked and whole: who looks meanwhile would
        # take it for one whose keeper has died.
        fresh = path.with_name(f".{record.name}")
        try:
            fd = os.open(
                fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Written and not only allocated: the first write to a block that was
                # never written is more than data for fdatasync(2) to bring home.
                os.pwrite(fd, bytes(_FILE_BYTES), 0)
                kept = Kept(File(fd, path))
                kept.journal.write(record)
                if side is Side.DESTINATION:
                    os.fsync(fd)
                os.rename(fresh, path)
                if side is Side.DESTINATION:
                    _sync_folder(path.parent)
            except BaseException:
                os.close(fd)
                fresh.unlink(missing_ok=True)
                raise
        except (OSError, JournalFailed) as error:
            raise CannotKeep(f"The journal {path} cannot be made: {error}.") from error
        return kept

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Nobody else begins a departure meanwhile."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def take(self, side: Side, name: str) -> Kept | None:
        """The journal of a transaction, ours from now on; None if a keeper lives.

        Raises:
            FileNotFoundError: there is none, or no longer.
        """
        path = self.path / side.value / name
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _lock(fd):
                os.close(fd)
                return None
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(path)
            return Kept(File(fd, path))
        except BaseException:
            os.close(fd)
            raise

    def look(self, side: Side, name: str) -> tuple[Record | None, bool]:
        """What a journal says, and whether a keeper lives; takes nothing.

        The record is None if there is none that is whole.

        Raises:
            FileNotFoundError: there is no such journal.
        """
        path = self.path / side.value / name
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        file = File(fd, path)
        try:
            # Shared: two who only look do not take each other for a keeper.
            is_kept = not _lock(fd, fcntl.LOCK_SH)
            return Journal(file).record, is_kept
        finally:
            file.close()

    def names(self, side: Side) -> tuple[str, ...]:
        """Every transaction that has a journal."""
        found = os.listdir(self.path / side.value)
        return tuple(sorted(name for name in found if not name.startswith(".")))

    def key(self) -> bytes:
        """The private key that signs for our journals (``verdict_token``)."""
        return (self.path / "identity").read_bytes()[EPOCH_BYTES:]

    def audit(self, line: str) -> None:
        """Keep for good what somebody decided against the protocol."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with (self.path / "audit.log").open("a") as log:
            log.write(f"{when} {line}\n")
            log.flush()
            os.fsync(log.fileno())

    def _identity(self) -> bytes:
        path = self.path / "identity"
        try:
            identity = path.read_bytes()
        except FileNotFoundError:
            identity = b""
        if len(identity) != EPOCH_BYTES + KEY_BYTES:
            identity = self._new_identity(path)
        return identity[:EPOCH_BYTES]

    def _new_identity(self, path: Path) -> bytes:
        key, epoch = verdict_token.new_key()
        fresh = self.path / f".identity-{os.getpid()}"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, epoch + key)
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            # Whoever comes second takes that of the first.
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        _sync_folder(self.path)
        return path.read_bytes()


def pid_namespace() -> int:
    """Ours, as a number that tells it from others while this kernel runs."""
    return os.stat("/proc/self/ns/pid").st_ino


def boot() -> bytes:
    """Which life of this kernel it is, in 16 bytes."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text()
    return bytes.fromhex(text.strip().replace("-", ""))


def _lock(fd: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (EAGAIN, EACCES):
            return False
        raise
    return True


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
