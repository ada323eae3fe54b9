"""The report: its keys are settled, its three lines can be read."""

import json

import pytest

from migrate.errors import Outcome, Reason, Refused, RolledBack
from migrate.report import DowntimeParts, MovedProcess, Report, seconds, size
from precopy.rounds import RoundRecord

ROUND = RoundRecord(
    number=1,
    pages=262144,
    zero_pages=10,
    bytes_raw=1 << 30,
    bytes_wire=410_000_000,
    duration_s=1.1,
    pause_s=0.0,
)
ARRIVED = Report(
    transaction="00ff",
    tracker="uffd-wp",
    processes=(
        MovedProcess(
            pid=4711,
            destination_pid=815,
            destination_pid_in_namespace=4711,
            threads=4,
            comm="redis-server",
        ),
    ),
    downtime_s=0.0071,
    downtime_parts_s=DowntimeParts(freeze=0.001, send=0.0032, handover=0.0005),
    total_s=3.2,
    rounds=(ROUND,),
    bytes_raw=1_080_000_000,
    bytes_wire=412_000_000,
    resident_bytes=1 << 30,
)


def test_the_keys_are_those_that_scripts_rely_on() -> None:
    """Names, order and types; on success there are no reasons."""
    assert ARRIVED.to_json() == {
        "outcome": "arrived",
        "exit_code": 0,
        "transaction": "00ff",
        "tracker": "uffd-wp",
        "processes": [
            {
                "pid": 4711,
                "destination_pid": 815,
                "destination_pid_in_namespace": 4711,
                "threads": 4,
                "comm": "redis-server",
            }
        ],
        "downtime_s": 0.0071,
        "downtime_parts_s": {
            "freeze": 0.001,
            "scan": 0.0,
            "dump": 0.0,
            "send": 0.0032,
            "restore": 0.0,
            "handover": 0.0005,
        },
        "total_s": 3.2,
        "rounds": [
            {
                "number": 1,
                "pages": 262144,
                "zero_pages": 10,
                "bytes_raw": 1073741824,
                "bytes_wire": 410000000,
                "duration_s": 1.1,
                "pause_s": 0.0,
            }
        ],
        "bytes_raw": 1080000000,
        "bytes_wire": 412000000,
        "resident_bytes": 1073741824,
    }


def test_a_failure_has_its_reasons() -> None:
    """Beside the outcome's name and its code."""
    reason = Reason("tty", "fd 0 of pid 7 is a terminal.", pid=7, fd=0)
    report = Report.of_failure(Refused("No.", reasons=[reason])).to_json()
    assert (report["outcome"], report["exit_code"]) == ("refused", 3)
    assert report["reasons"] == [
        {"kind": "tty", "pid": 7, "fd": 0, "message": "fd 0 of pid 7 is a terminal."}
    ]


def test_a_failure_tells_how_far_it_came() -> None:
    """The rounds that were done, under the outcome of the error."""
    report = Report.of_failure(RolledBack("The link was lost.", report=ARRIVED))
    assert report.rounds == (ROUND,)
    assert report.outcome is Outcome.ROLLED_BACK
    assert report.reasons[0].kind == "rolled-back"
    assert "runs on here" in report.reasons[0].message


@pytest.mark.parametrize(
    "report", [ARRIVED, Report(), Report.of_failure(RolledBack("x", report=ARRIVED))]
)
def test_what_was_written_can_be_read_again(report: Report) -> None:
    """One line of JSON, and back."""
    line = report.json()
    assert "\n" not in line
    assert Report.from_json(json.loads(line)) == report


def test_a_hostile_name_is_written_out() -> None:
    """In both forms: a comm may hold anything but NUL."""
    process = MovedProcess(pid=1, threads=1, comm="\x1b[2J\udce9")
    report = Report(processes=(process,))
    assert report.to_json()["processes"][0]["comm"] == "\\x1b[2J\\xe9"
    assert "\x1b" not in report.text("b:1")


def test_a_person_reads_three_lines() -> None:
    """Where it is now; downtime and its largest part; bytes and time."""
    assert ARRIVED.text("b:7077").splitlines() == [
        "redis-server (pid 4711, 4 threads) runs at b:7077 as pid 815.",
        "Downtime 7.1 ms; its largest part was send, 3.2 ms.",
        "392.9 MiB sent for 1.0 GiB resident, in 1 round and 3.20 s.",
    ]


@pytest.mark.parametrize(
    ("duration_s", "said"),
    [(0.0, "0 µs"), (0.00025, "250 µs"), (0.0071, "7.1 ms"), (61.0, "61.00 s")],
)
def test_a_duration_is_said_in_its_own_unit(duration_s: float, said: str) -> None:
    """Three figures are enough to compare by."""
    assert seconds(duration_s) == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [(0, "0 B"), (4096, "4.0 KiB"), (512 << 20, "512.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_a_size_is_said_in_its_own_unit(size_bytes: int, said: str) -> None:
    """In powers of 1024, as pages are."""
    assert size(size_bytes) == said
