"""What a move did: for people three lines, for programs one JSON object.

The keys are settled: scripts, load balancers and our own checks rely on them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from migrate.errors import MigrateError, Outcome, Reason, printable
from precopy.rounds import RoundRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedProcess:
    """One process of the tree, here and there."""

    pid: int
    destination_pid: int | None = None  # as the destination's root namespace sees it
    destination_pid_in_namespace: int | None = None  # as it sees itself
    threads: int
    comm: str  # of the target's choosing: printable() before it is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class DowntimeParts:
    """Where the downtime went, in seconds."""

    freeze: float = 0.0
    scan: float = 0.0
    dump: float = 0.0
    send: float = 0.0
    restore: float = 0.0
    handover: float = 0.0

    def by_name(self) -> dict[str, float]:
        """Seconds by part, in the order in which they pass."""
        return asdict(self)

    def largest(self) -> tuple[str, float]:
        """Name and seconds of the longest part."""
        return max(self.by_name().items(), key=lambda part: part[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One move, or as much of it as there was.

    Downtime is the time from the moment the last thread stopped at the source to
    the moment the first may run at the destination; measured at the source, up to
    the receipt of Accepted, so it says half a round trip too much and never too
    little. None where nothing was frozen.
    """

    outcome: Outcome = Outcome.ARRIVED
    transaction: str | None = None
    tracker: str | None = None
    processes: tuple[MovedProcess, ...] = ()
    downtime_s: float | None = None
    downtime_parts_s: DowntimeParts = field(default_factory=DowntimeParts)
    total_s: float = 0.0
    rounds: tuple[RoundRecord, ...] = ()
    bytes_raw: int = 0
    bytes_wire: int = 0
    resident_bytes: int = 0
    reasons: tuple[Reason, ...] = ()  # why not; empty when it arrived

    @classmethod
    def of_failure(cls, error: MigrateError) -> Report:
        """How ``error`` ended the move, with what is known of how far it came."""
        so_far = error.report if isinstance(error.report, cls) else cls()
        # Without reasons of its own an error is its own reason.
        reasons = error.reasons or (
            Reason(error.outcome.name.lower().replace("_", "-"), str(error)),
        )
        return replace(so_far, outcome=error.outcome, reasons=reasons)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values, in the order in which people read it."""
        report: dict[str, Any] = {
            "outcome": self.outcome.value,
            "exit_code": self.outcome.exit_code,
            "transaction": self.transaction,
            "tracker": self.tracker,
            "processes": [
                {**asdict(process), "comm": printable(process.comm)}
                for process in self.processes
            ],
            "downtime_s": self.downtime_s,
            "downtime_parts_s": self.downtime_parts_s.by_name(),
            "total_s": self.total_s,
            "rounds": [_plain_round(record) for record in self.rounds],
            "bytes_raw": self.bytes_raw,
            "bytes_wire": self.bytes_wire,
            "resident_bytes": self.resident_bytes,
        }
        if self.outcome.exit_code != 0:
            report["reasons"] = [
                {
                    "kind": reason.kind,
                    "pid": reason.pid,
                    "fd": reason.fd,
                    "message": printable(reason.message),
                }
                for reason in self.reasons
            ]
        return report

    @classmethod
    def from_json(cls, report: dict[str, Any]) -> Report:
        """The inverse of ``to_json``; a key that should be there raises KeyError."""
        outcome = Outcome(report["outcome"])
        return cls(
            outcome=outcome,
            transaction=report["transaction"],
            tracker=report["tracker"],
            processes=tuple(MovedProcess(**p) for p in report["processes"]),
            downtime_s=report["downtime_s"],
            downtime_parts_s=DowntimeParts(**report["downtime_parts_s"]),
            total_s=report["total_s"],
            rounds=tuple(RoundRecord(**record) for record in report["rounds"]),
            bytes_raw=report["bytes_raw"],
            bytes_wire=report["bytes_wire"],
            resident_bytes=report["resident_bytes"],
            reasons=tuple(Reason(**reason) for reason in report.get("reasons", ())),
        )

    def json(self) -> str:
        """``to_json`` on one line, in ASCII."""
        return json.dumps(self.to_json())

    def text(self, destination: str) -> str:
        """Three lines: where it is now, the downtime, the bytes and the time."""
        part, part_s = self.downtime_parts_s.largest()
        rounds = _count(len(self.rounds), "round")
        return "\n".join(
            (
                f"{self._who()} at {destination}{self._pids_there()}.",
                f"Downtime {seconds(self.downtime_s or 0.0)}; "
                f"its largest part was {part}, {seconds(part_s)}.",
                f"{size(self.bytes_wire)} sent for {size(self.resident_bytes)} "
                f"resident, in {rounds} and {seconds(self.total_s)}.",
            )
        )

    def _who(self) -> str:
        if len(self.processes) != 1:
            return f"{_count(len(self.processes), 'process', 'processes')} run"
        (process,) = self.processes
        threads = _count(process.threads, "thread")
        return f"{printable(process.comm)} (pid {process.pid}, {threads}) runs"

    def _pids_there(self) -> str:
        pids = [
            str(process.destination_pid)
            for process in self.processes
            if process.destination_pid is not None
        ]
        if not pids:
            return ""
        return f" as pid {pids[0]}" if len(pids) == 1 else f" as pids {', '.join(pids)}"


def _plain_round(record: RoundRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in _ROUND_KEYS}


_ROUND_KEYS = tuple(column.name for column in fields(RoundRecord))


def _count(number: int, what: str, plural: str | None = None) -> str:
    return f"{number} {what if number == 1 else plural or what + 's'}"


def seconds(duration_s: float) -> str:
    """A duration as people say it: ``7.1 ms``, ``3.20 s``."""
    if duration_s < 0.001:
        return f"{duration_s * 1e6:.0f} µs"
    if duration_s < 1.0:
        return f"{duration_s * 1e3:.1f} ms"
    return f"{duration_s:.2f} s"


def size(count_bytes: float) -> str:
    """A size as people say it, in powers of 1024: ``512.0 MiB``."""
    if count_bytes < 1024:
        return f"{count_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count_bytes /= 1024
        if count_bytes < 1024:
            return f"{count_bytes:.1f} {unit}"
    return f"{count_bytes / 1024:.1f} TiB"
