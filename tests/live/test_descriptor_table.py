"""The table of descriptors as a whole: numbers, sharing, change, size, refusals."""

import fcntl
import os
import pty
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrate import descriptors, strangers
from migrate.descriptors import Descriptors, Slot
from migrate.kernel import procfs
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry, Source
from migrate.kinds.pipe import Pipe
from migrate.kinds.regular_file import RegularFile
from precopy.ids import Pid
from tests.live.scenarios.harness import Scenario
from tests.live.test_descriptor_kinds import being_built, looked_at

EVENT = bytes([1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0])  # EPOLLIN, data 7


def essence(found: Descriptors) -> tuple[object, ...]:
    """What two equal tables have in common: not the pipes' inodes.

    Nor the sizes of files: what is remembered of one may be older than the file.
    """
    pipes: dict[int, int] = {}
    records: list[Any] = []
    for dumped in found.descriptions:
        record = table.unpack(dumped)
        if isinstance(record, Pipe):
            record = replace(record, pipe=pipes.setdefault(record.pipe, len(pipes)))
        if isinstance(record, RegularFile):
            record = replace(record, size=0)
        records.append(record)
    return tuple(records), found.slots


class Meddler:
    """Has a stopped process do to its descriptors whatever chance says."""

    def __init__(self, source: Source, chance: random.Random, folder: Path) -> None:
        self.source = source
        self.remote = source.remote
        self.chance = chance
        self.folder = folder
        ignored = (int(signal.SIG_IGN)).to_bytes(32, "little")
        self.remote.syscall("rt_sigaction", int(signal.SIGPIPE), ignored, 0, 8)

    def numbers(self) -> list[int]:
        return [view.number for view in procfs.fds(self.source.pid)]

    def step(self) -> None:
        self.chance.choice(
            [
                self.open,
                self.open,
                self.pipe,
                self.eventfd,
                self.epoll,
                self.watch,
                self.dup,
                self.dup,
                self.close,
                self.close,
                self.seek,
                self.write,
                self.read,
            ]
        )()

    def any(self) -> int:
        return self.chance.choice([*self.numbers(), 3])

    def unwatch(self, number: int) -> None:
        """Take it out of every set, as a careful program does before it closes."""
        batch = self.remote.batch()
        for view in procfs.fds(self.source.pid):
            for found in procfs.epoll_targets(view.info):
                if found.fd == number:
                    batch.add("epoll_ctl", view.number, 2, number, 0)
        batch.run(check=False)

    def open(self) -> None:
        path = self.folder / f"file-{self.chance.randrange(3)}"
        path.touch()
        flags = self.chance.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
        flags |= self.chance.choice([0, os.O_CLOEXEC, os.O_NONBLOCK])
        self.remote.syscall("openat", -100, os.fsencode(path) + b"\0", flags, 0)

    def pipe(self) -> None:
        self.remote.syscall("pipe2", self.remote.space(8), os.O_NONBLOCK)
        self.remote.reset()

    def eventfd(self) -> None:
        self.remote.syscall("eventfd2", self.chance.randrange(5), os.O_NONBLOCK)

    def epoll(self) -> None:
        self.remote.syscall("epoll_create1", 0)

    def watch(self) -> None:
        batch = self.remote.batch()
        batch.add("epoll_ctl", self.any(), 1, self.any(), EVENT)
        batch.run(check=False)

    def dup(self) -> None:
        old, new = self.any(), self.chance.randrange(3, 40)
        if old != new:
            self.unwatch(new)
            batch = self.remote.batch()
            batch.add("dup3", old, new, self.chance.choice([0, os.O_CLOEXEC]))
            batch.run(check=False)

    def close(self) -> None:
        number = self.any()
        self.unwatch(number)
        batch = self.remote.batch()
        batch.add("close", number)
        batch.run(check=False)

    def seek(self) -> None:
        batch = self.remote.batch()
        batch.add("lseek", self.any(), self.chance.randrange(100), os.SEEK_SET)
        batch.run(check=False)

    def write(self) -> None:
        batch = self.remote.batch()
        data = self.chance.randbytes(8)[:7] + b"\0"
        batch.add("write", self.any(), data, 8)
        batch.run(check=False)

    def read(self) -> None:
        batch = self.remote.batch()
        for number in self.numbers():
            # Only what does not block: an empty pipe may have lost its flag to none.
            if self.chance.randrange(4) == 0:
                batch.add("fcntl", number, fcntl.F_SETFL, os.O_NONBLOCK)
                batch.add("read", number, self.remote.space(8), 8)
        batch.run(check=False)
        self.remote.reset()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Two processes with nothing open but /dev/null, waiting."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with (
        Scenario("device", tmp_path / "one", "bare") as one,
        Scenario("device", tmp_path / "other", "bare") as other,
    ):
        one.ready()
        other.ready()
        yield one.process.pid, other.process.pid


@pytest.mark.parametrize("seed", range(6))
def test_any_table_becomes_any_other(
    seed: int, two: tuple[int, int], tmp_path: Path
) -> None:
    """However the source's table changes, the target's is the same after each pass."""
    chance = random.Random(seed)
    standing: Descriptors | None = None
    memory: descriptors.Memory = {}
    for _ in range(12):
        with looked_at(two[0]) as source:
            meddler = Meddler(source, chance, tmp_path)
            for _ in range(chance.randrange(25)):
                meddler.step()
            source.views = procfs.fds(source.pid)
            wanted = descriptors.dump(source, memory)
            assert essence(wanted) == essence(descriptors.dump(source))
        with being_built(two[1]) as target:
            descriptors.restore(wanted, target, standing)
        with looked_at(two[1]) as source:
            assert essence(descriptors.dump(source)) == essence(wanted), f"{seed=}"
        standing = wanted


def test_ten_thousand_descriptors(two: tuple[int, int], tmp_path: Path) -> None:
    """A table of 10,000 files and 200 other things goes over whole."""
    for number in range(100):
        (tmp_path / f"file-{number}").write_bytes(b"x" * 100)
    with looked_at(two[0]) as source:
        batch = source.remote.batch()
        batch.add("prlimit64", 0, 7, _limits(16384, 16384), 0)
        for number in range(10_000):
            path = os.fsencode(tmp_path / f"file-{number % 100}") + b"\0"
            batch.add("openat", -100, path, os.O_RDWR, 0)
            batch.add("lseek", 3 + number, number % 90, os.SEEK_SET)
        for _ in range(200):
            batch.add("eventfd2", 3, 0)
        batch.run()
        source.views = procfs.fds(source.pid)
        wanted = descriptors.dump(source)
    assert len(wanted.slots) >= 10_200
    with being_built(two[1]) as target:
        # As many as are needed is what the hard limit allows; the soft one stays.
        target.remote.syscall("prlimit64", 0, 7, _limits(512, 16384), 0)
        descriptors.restore(wanted, target)
    assert procfs.limits(Pid(two[1]))[7].soft == 512
    with looked_at(two[1]) as source:
        assert essence(descriptors.dump(source)) == essence(wanted)


def _limits(soft: int, hard: int) -> bytes:
    return soft.to_bytes(8, "little") + hard.to_bytes(8, "little")


def test_no_room_for_the_highest_number(two: tuple[int, int]) -> None:
    """A number above the hard limit is refused, in words, before anything is done."""
    with looked_at(two[0]) as source:
        source.remote.syscall("dup3", 0, 900, 0)
        source.views = procfs.fds(source.pid)
        wanted = descriptors.dump(source)
    with being_built(two[1]) as target:
        target.remote.syscall("prlimit64", 0, 7, _limits(256, 256), 0)
        with pytest.raises(CannotCarry, match="fd 900 is in use, and at most 256"):
            descriptors.restore(wanted, target)


@pytest.mark.parametrize(
    "slots",
    [
        (Slot(3, 0, False), Slot(3, 0, False)),
        (Slot(-1, 0, False),),
        (Slot(1 << 20, 0, False),),
        (Slot(3, 1, False),),
        (Slot(3, -1, False),),
        (),
    ],
)
def test_a_table_that_is_none(slots: tuple[Slot, ...], two: tuple[int, int]) -> None:
    """What no dump can have written is refused."""
    with looked_at(two[0]) as source:
        real = descriptors.dump(source)
    with (
        being_built(two[1]) as target,
        pytest.raises(CannotCarry, match="a table of descriptors that is none"),
    ):
        descriptors.restore(Descriptors(real.descriptions[:1], slots), target)


def views_of_us(*numbers: int) -> list[procfs.FdView]:
    """Our own descriptors, seen from outside."""
    return [procfs.fd(Pid(os.getpid()), number) for number in numbers]


def refusal(number: int) -> str:
    """The one reason why our own descriptor cannot go."""
    (reason,) = strangers.reasons(Pid(os.getpid()), views_of_us(number))
    assert (reason.pid, reason.fd) == (os.getpid(), number)
    return reason.message


def test_what_nobody_claims_is_refused_by_name() -> None:
    """A socket, a terminal, a pidfd: each is called what it is."""
    master, slave = pty.openpty()
    pidfd = os.pidfd_open(os.getpid())
    with socket.socket() as sock:
        assert "is a socket, which cannot" in refusal(sock.fileno())
    assert "is a terminal (/dev/p" in refusal(slave)
    assert "is a terminal (/dev/p" in refusal(master)
    assert "is a pidfd" in refusal(pidfd)
    for fd in (master, slave, pidfd):
        os.close(fd)


def test_files_that_cannot_be_opened_by_their_name(tmp_path: Path) -> None:
    """Known by another name, O_PATH: refused, with the file's name."""
    file = tmp_path / "file\n\x1b[31m"
    file.touch()
    with file.open() as opened:
        assert strangers.reasons(Pid(os.getpid()), views_of_us(opened.fileno())) == []
        (tmp_path / "another name").hardlink_to(file)
        file.unlink()
        message = refusal(opened.fileno())
        assert "was deleted while it is open" in message
        assert "\n" not in message and "\x1b" not in message
        file.touch()
        # Its name is another's now; the kernel says "(deleted)" of it all the same.
        assert "was deleted" in refusal(opened.fileno())
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, flags, words in (
        (file, os.O_PATH, "opened with O_PATH"),
        (tmp_path, os.O_PATH, "opened with O_PATH"),
        (fifo, os.O_PATH, "opened with O_PATH"),
    ):
        fd = os.open(path, flags)
        assert words in refusal(fd)
        os.close(fd)
    fd = os.open(fifo, os.O_RDWR)
    fifo.unlink()
    assert "which is not there" in refusal(fd)
    os.close(fd)


def test_files_that_have_no_name_can_go(tmp_path: Path) -> None:
    """Deleted, replaced, a memfd, never named: their contents go along."""
    file, other = tmp_path / "file", tmp_path / "other"
    for path in (file, other):
        path.touch()
    with file.open() as replaced, other.open() as deleted:
        os.rename(other, file)
        file.unlink()
        unnamed = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
        memfd = os.memfd_create("name")
        numbers = replaced.fileno(), deleted.fileno(), unnamed, memfd
        assert strangers.reasons(Pid(os.getpid()), views_of_us(*numbers)) == []
        os.close(unnamed)
        os.close(memfd)


def test_a_file_whose_name_ends_in_deleted(tmp_path: Path) -> None:
    """Only the kernel's word counts, not a file that is called so."""
    file = tmp_path / "file (deleted)"
    with file.open("w") as opened:
        assert strangers.reasons(Pid(os.getpid()), views_of_us(opened.fileno())) == []


def test_signals_about_a_descriptor(two: tuple[int, int]) -> None:
    """O_ASYNC and an owner are seen, and refused."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    assert "sends signals when it is ready" in refusal(reader)
    os.close(reader)
    os.close(writer)
    with looked_at(two[0]) as source:
        source.remote.syscall("fcntl", 0, fcntl.F_SETOWN, source.pid)
        with pytest.raises(CannotCarry, match="sends signals when it is ready"):
            descriptors.dump(source)


def test_what_another_process_has_too() -> None:
    """A pipe or a counter that a second process shares is refused, with its pid."""
    reader, writer = os.pipe()
    counter = os.eventfd(0)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[reader, counter])
    try:
        views = views_of_us(reader, writer, counter)
        found = strangers.reasons(Pid(os.getpid()), views)
        assert {reason.fd for reason in found} == {reader, writer, counter}
        assert all(f"which pid {child.pid} has too" in r.message for r in found)
    finally:
        child.kill()
        child.wait()
    assert strangers.reasons(Pid(os.getpid()), views) == []
    for fd in (reader, writer, counter):
        os.close(fd)


@pytest.mark.parametrize("end", ["reader", "writer"])
def test_a_pipe_whose_other_end_is_elsewhere(end: str, two: tuple[int, int]) -> None:
    """Seen by the pipe itself, even where the other process cannot be looked into."""
    reader, writer = os.pipe()
    kept = reader if end == "reader" else writer
    given = writer if end == "reader" else reader
    with looked_at(two[0]) as source:
        path = os.fsencode(f"/proc/{os.getpid()}/fd/{given}") + b"\0"
        flags = os.O_WRONLY if end == "reader" else os.O_RDONLY
        source.remote.syscall("openat", -100, path, flags, 0)
        os.close(given)
        source.views = procfs.fds(source.pid)
        with pytest.raises(CannotCarry, match="that another process"):
            descriptors.dump(source)
        os.close(kept)
        descriptors.dump(source)


def test_a_watch_that_outlived_its_number(two: tuple[int, int]) -> None:
    """An epoll set that watches under a closed or a used number is refused."""
    with looked_at(two[0]) as source:
        batch = source.remote.batch()
        batch.add("epoll_create1", 0)
        batch.add("eventfd2", 0, 0)
        epoll, eventfd = batch.run()
        batch.add("epoll_ctl", epoll, 1, eventfd, EVENT)
        batch.add("dup3", eventfd, 90, 0)
        batch.run()
        source.views = procfs.fds(source.pid)
        descriptors.dump(source)
        for call in (("close", eventfd), ("dup3", 0, eventfd, 0)):
            source.remote.syscall(*call)
            source.views = procfs.fds(source.pid)
            with pytest.raises(CannotCarry, match=f"watches a file as fd {eventfd}"):
                descriptors.dump(source)
        (reason,) = strangers.reasons(source.pid, [source.views[epoll]])
        assert reason.kind == "epoll"


def test_a_file_that_is_shorter_over_there(
    two: tuple[int, int], tmp_path: Path
) -> None:
    """Shorter, gone, or no file at all: refused with its name."""
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    with looked_at(two[0]) as source:
        path = os.fsencode(file) + b"\0"
        source.remote.syscall("openat", -100, path, os.O_RDONLY, 0)
        source.views = procfs.fds(source.pid)
        wanted = descriptors.dump(source)
    with being_built(two[1]) as target:
        file.write_bytes(b"012345678")
        with pytest.raises(CannotCarry, match="has 9 bytes here and 10 at the source"):
            descriptors.restore(wanted, target)
        file.unlink()
        with pytest.raises(CannotCarry, match="cannot be opened: No such file"):
            descriptors.restore(wanted, target)
        os.mkfifo(file)
        with pytest.raises(CannotCarry, match="is not a regular file here"):
            descriptors.restore(wanted, target)
