"""Answers of one stop compared with those of another: only what changed is news."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from migrate.answers import Answers
from migrate.kernel.pidfds import PidFd
from migrate.kernel.tracee import Tracee
from migrate.kinds import comm, pending_signals, table
from migrate.kinds.kind import Scope, Source
from migrate.kinds.table import Dumped
from precopy.ids import Tid
from tests.live.victim import Victim, running

THREADS = """
import time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def breathe():
    while True:
        time.sleep(0.001)
for _ in range(3):
    threading.Thread(target=breathe, daemon=True).start()
"""
PR_SET_NAME = 15


@contextmanager
def stopped(victim: Victim) -> Iterator[Source]:
    """A short stop, as a move makes several."""
    with (
        Tracee.seize(victim.pid) as tracee,
        tracee.remote() as remote,
        PidFd.open(victim.pid) as pidfd,
    ):
        yield Source(victim.pid, tracee, remote, pidfd)


def read(answers: Answers, source: Source, tids: tuple[Tid, ...]) -> None:
    for tid, answer in zip(tids, answers.ask(source.remote, tids), strict=True):
        answers.read(tid, answer)


def news(answers: Answers, source: Source) -> dict[Tid, tuple[Dumped, ...]]:
    """By thread; those without are left out."""
    tids = source.tracee.tids
    doubted = answers.doubted(source)
    said = zip(tids, answers.ask(source.remote, tids), strict=True)
    found = {tid: answers.news(source, tid, said, doubted) for tid, said in said}
    return {tid: dumped for tid, dumped in found.items() if dumped}


def test_to_whom_nothing_happened_there_is_no_news() -> None:
    answers = Answers(Scope.TASK)
    with running(THREADS) as victim:
        with stopped(victim) as source:
            read(answers, source, source.tracee.tids)
        assert victim.answers()
        with stopped(victim) as source:
            assert len(source.tracee.tids) == 4
            assert news(answers, source) == {}
            assert [answers.own_tid(tid) for tid in source.tracee.tids] == [
                *source.tracee.tids
            ]


def test_what_one_thread_changes_is_its_news() -> None:
    answers = Answers(Scope.TASK)
    with running(THREADS) as victim:
        with stopped(victim) as source:
            read(answers, source, source.tracee.tids)
            tid = source.tracee.tids[2]
            source.remote.on(tid).syscall("prctl", PR_SET_NAME, b"another\0", 0, 0, 0)
        with stopped(victim) as source:
            renamed = table.pack(comm.KIND, comm.Comm(b"another"))
            assert news(answers, source) == {tid: (renamed,)}


def test_of_a_thread_that_has_come_everything_is_news_each_time() -> None:
    answers = Answers(Scope.TASK)
    with running(THREADS) as victim:
        with stopped(victim) as source:
            read(answers, source, source.tracee.tids[:-1])
        for _ in "first", "again":
            with stopped(victim) as source:
                late = source.tracee.tids[-1]
                (found,) = news(answers, source).items()
                assert found[0] == late
                told = {dumped.kind for dumped in found[1]}
                # This one refuses or has nothing to say.
                everything = {m.KIND.name for m in table.task_kinds()}
                assert told == everything - {"unusual_modes"}


def test_what_does_not_fit_into_an_answer_is_looked_for() -> None:
    answers = Answers(Scope.PROCESS)
    with running(THREADS) as victim:
        with stopped(victim) as source:
            read(answers, source, source.tracee.tids[:1])
            os.kill(victim.pid, signal.SIGUSR1)
        with stopped(victim) as source:
            leader = source.tracee.tids[0]
            (answer,) = answers.ask(source.remote, [leader])
            found = answers.news(source, leader, answer, set())
            (pending,) = (d for d in found if d.kind == pending_signals.KIND.name)
            (info,) = table.unpack(pending).infos
            assert int.from_bytes(info[:4], "little") == signal.SIGUSR1
