"""The command line: what is asked for, what comes back, and how signals end it."""

import json
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from threading import Event

import pytest
import trio
import trio.testing

from migrate.cli import Depart, run
from migrate.errors import InDoubt, MigrateError, Reason, Refused, RolledBack
from migrate.options import Codec, MoveOptions, OnStall, Peer, PidPolicy, TrackerChoice
from migrate.progress import Progress
from migrate.report import MovedProcess, Report
from migrate.tracer_thread import TracerThread

TO = ("--to", "b:7077")
ARRIVED = Report(processes=(MovedProcess(pid=7, threads=2, comm="toy"),))


class Recorder:
    """A departure that notes what it was asked for, and does as told."""

    def __init__(
        self, do: Callable[[Progress], Awaitable[Report]] | MigrateError | None = None
    ) -> None:
        self.do = do
        self.pids: tuple[int, ...] = ()
        self.peer: tuple[str, int] = ("", 0)
        self.options = MoveOptions()

    async def __call__(
        self,
        pids: Sequence[int],
        peer: tuple[str, int],
        options: MoveOptions,
        progress: Progress,
    ) -> Report:
        self.pids, self.peer, self.options = tuple(pids), peer, options
        if isinstance(self.do, MigrateError):
            raise self.do
        if self.do is not None:
            return await self.do(progress)
        return ARRIVED


def test_a_first_word_that_is_no_command_begins_a_move() -> None:
    """The main job needs no verb; options and pids come in any order."""
    for arguments in ([*TO, "7", "8"], ["7", *TO, "8"], ["-q", *TO, "7", "8", "7"]):
        depart = Recorder()
        assert run(arguments, depart=depart) == 0
        assert depart.pids == (7, 8)
        assert depart.peer == Peer("b", 7077)
        assert depart.options == MoveOptions()


def test_every_option_reaches_the_move() -> None:
    """In the units in which it is documented."""
    depart = Recorder()
    given = (
        "--downtime-limit 5 --max-rounds 3 --timeout 60 --on-stall abort "
        "--streams 1 --compress none --tracker everything "
        "--pid any --dry-run"
    )
    assert run([*TO, *given.split(), "7"], depart=depart) == 0
    options = depart.options
    assert options.downtime_limit_s == pytest.approx(0.005)
    assert options.rounds_max == 3
    assert options.timeout_s == 60
    assert options.on_stall is OnStall.ABORT
    assert options.streams == 1
    assert options.compress.codec is Codec.NONE
    assert options.tracker is TrackerChoice.EVERYTHING
    assert options.pid_policy is PidPolicy.ANY
    assert options.dry_run


@pytest.mark.parametrize("given", ["--streams 2"])
def test_what_is_not_there_yet_is_refused(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit that is passed over in silence is worse than none."""
    depart = Recorder()
    assert run([*TO, *given.split(), "7"], depart=depart) == 2
    assert depart.pids == ()
    assert f"{given.split()[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["7"],
        [*TO],
        [*TO, "0"],
        [*TO, "-1"],
        [*TO, "seven"],
        [*TO, "99999999999999999999"],
        ["--to", "b", "7"],
        ["--to", "b:99999", "7"],
        [*TO, "--pid", "auto", "7"],
        [*TO, "--downtime-limit", "nan", "7"],
        [*TO, "--downtime-limit", "0", "7"],
        [*TO, "--timeout", "inf", "7"],
        [*TO, "--max-rounds", "0", "7"],
        [*TO, "--bandwidth", "fast", "7"],
        [*TO, "--unheard-of", "7"],
        ["stauts"],
        ["agent", "--listen", "7077"],
    ],
)
def test_wrong_arguments_end_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is touched, and stdout stays clean."""
    depart = Recorder()
    assert run(arguments, depart=depart) == 2
    assert depart.pids == ()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err != ""


def test_wrong_arguments_have_a_report_as_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who asked for JSON gets one object, whatever happens."""
    assert run(["--json", "--to", "b", "7"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["exit_code"] == 2
    assert "HOST:PORT" in report["reasons"][0]["message"]


def test_an_arrival_is_told_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """In three lines, in JSON, or not at all."""
    assert run([*TO, "7"], depart=Recorder()) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "toy (pid 7, 2 threads) runs at b:7077."
    )
    assert run([*TO, "7", "--json"], depart=Recorder()) == 0
    assert Report.from_json(json.loads(capsys.readouterr().out)) == ARRIVED
    assert run([*TO, "7", "-q"], depart=Recorder()) == 0
    assert capsys.readouterr() == ("", "")


def test_a_check_says_that_it_can_go(capsys: pytest.CaptureFixture[str]) -> None:
    """And that it has not gone."""
    depart = Recorder()
    assert run(["check", *TO, "7"], depart=depart) == 0
    assert depart.options.dry_run
    assert capsys.readouterr().out == "pid 7 can go to b:7077.\n"
    assert run(["check", *TO, "7", "--json"], depart=Recorder()) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "can go"


def test_every_reason_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with what a target chose written out; in JSON on stdout."""
    error = Refused(
        "pid 7 cannot go.",
        reasons=[
            Reason("tty", "fd 0 is a terminal.", 7, 0),
            Reason("socket", "fd 3 is \x1b[2Ja socket.", 7, 3),
        ],
    )
    assert run([*TO, "7", "--json"], depart=Recorder(error)) == 3
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "migrate: pid 7 cannot go. Nothing was touched.",
        "  - fd 0 is a terminal.",
        "  - fd 3 is \\x1b[2Ja socket.",
    ]
    assert [reason["fd"] for reason in json.loads(said.out)["reasons"]] == [0, 3]


def test_an_error_in_a_group_is_still_that_error() -> None:
    """A departure has tasks of its own; one of them failed."""

    async def fail_in_a_nursery(progress: Progress) -> Report:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                raise InDoubt("No answer.")

            nursery.start_soon(fail)
        return ARRIVED

    assert run([*TO, "7"], depart=Recorder(fail_in_a_nursery)) == 7


def test_what_nobody_expected_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that says where the process is; a traceback only with -v."""

    async def stumble(progress: Progress) -> Report:
        raise ZeroDivisionError("7 / 0")

    assert run([*TO, "7", "--json"], depart=Recorder(stumble)) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err
    assert "runs on here" in said.err
    assert "Traceback" not in said.err
    assert json.loads(said.out)["outcome"] == "our bug"

    async def stumble_late(progress: Progress) -> Report:
        progress.handing_over()
        raise ZeroDivisionError

    assert run([*TO, "7", "-v"], depart=Recorder(stumble_late)) == 1
    said = capsys.readouterr()
    assert "runs on here" not in said.err
    assert "Traceback" in said.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_handover_rolls_back(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so, and ends with 6."""

    async def wait_for_ever(progress: Progress) -> Report:
        os.kill(os.getpid(), number)
        await trio.sleep_forever()
        raise AssertionError

    assert run([*TO, "7"], depart=Recorder(wait_for_ever)) == 6
    said = capsys.readouterr().err
    assert number.name in said
    assert "runs on here" in said


def test_a_signal_after_the_handover_changes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is too late, and the move goes on to its end."""

    async def be_interrupted_late(progress: Progress) -> Report:
        progress.handing_over()
        os.kill(os.getpid(), signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()
        return ARRIVED

    assert run([*TO, "7"], depart=Recorder(be_interrupted_late)) == 0
    said = capsys.readouterr()
    assert "under way" in said.err
    assert "runs at b:7077" in said.out


def test_work_on_the_tracer_thread_is_undone_before_the_end() -> None:
    """A signal asks it to stop; what it then raises is how the move ended."""
    undone = Event()

    async def trace(progress: Progress) -> Report:
        cancelled = Event()

        def work() -> Report:
            os.kill(os.getpid(), signal.SIGINT)
            assert cancelled.wait(30)
            undone.set()
            raise RolledBack("Called off in round 3.")

        async with TracerThread("tracer") as tracer:
            return await tracer.run(work, cancelled=cancelled)

    assert run([*TO, "7"], depart=Recorder(trace)) == 6
    assert undone.is_set()


def test_a_recorder_is_a_departure() -> None:
    """The stand-in has the signature of the real one."""
    depart: Depart = Recorder()
    assert callable(depart)
