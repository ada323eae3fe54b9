"""The same workload stopped, copied and started again with CRIU, where there is one.

Dump and restore on one host through its tmpfs: nothing crosses a link, so CRIU is
spared what a move between two machines would cost it.
"""

import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import programs
from bench.figures import Result, summaries
from bench.ground import Ground, TrialFailed, warm
from bench.measurement import Tell
from bench.presentation import MISSING, spread
from migrate.demo import workload
from migrate.demo.workload import Shape, Workload
from migrate.testbed import Host, HostProcess
from precopy.errors import TaskVanished

_IMAGES: Final = "/tmp/criu-images"  # a host's /tmp is a tmpfs of its own
_SAID_CHARACTERS_MAX: Final = 400


def program() -> Path | None:
    """The criu on PATH."""
    found = shutil.which("criu")
    return None if found is None else Path(found)


def measure(place: Ground, what: Shape, runs: int, tell: Tell) -> Result:
    """Its figures; or under ``missing``, why there are none."""
    binary = program()
    if binary is None:
        tell("  CRIU: no criu on PATH, so it is not compared")
        return {"missing": "there is no criu on PATH"}
    samples: list[dict[str, Any]] = []
    failed: list[str] = []
    for number in range(1, runs + 1):
        try:
            samples.append(_one(place.a, what, binary))
        except TrialFailed as error:
            failed.append(str(error))
            tell(f"  CRIU: run {number} of {runs} failed: {error}")
    return {
        "way": "stop-and-copy: dump and restore on one host, through tmpfs",
        "runs": runs,
        "failures": failed,
        **summaries(samples, "heartbeat_gap_s", "dump_s", "restore_s", "total_s"),
        # What the program noticed all the same: calls that failed with EINTR, say.
        "faults": [sample["faults"] for sample in samples],
    }


def _one(host: Host, what: Shape, binary: Path) -> dict[str, Any]:
    size_bytes = what.size_mib << 20
    warm(3 * size_bytes, huge=what.huge)  # the process, its images, the process
    with ExitStack() as at_the_end:
        process, before = workload.start(what, program=programs.demo(), host=host)
        assert isinstance(process, HostProcess)
        at_the_end.callback(process.close)
        at_the_end.callback(process.kill)
        at_the_end.callback(before.close)
        pid = process.pid_inside
        host.run(["mkdir", "-p", _IMAGES], check=True)
        at_the_end.callback(host.run, ["rm", "-rf", _IMAGES])
        before.forget_gaps()
        began_s = time.monotonic()
        _criu(host, binary, "dump", "--tree", str(pid))
        dumped_s = time.monotonic()
        _criu(host, binary, "restore", "--restore-detached")
        restored_s = time.monotonic()
        again = at_the_end.enter_context(host.process(pid))
        at_the_end.callback(again.kill)
        with Workload(again.pid) as there:
            try:
                there.verify()
            except (TimeoutError, TaskVanished) as error:
                raise TrialFailed(f"CRIU restored it, but {error}.") from error
            status = there.status()
        if status.faults.memory_wrong:
            raise TrialFailed(f"CRIU restored it, but not well: {status.faults}.")
        return {
            "heartbeat_gap_s": status.longest_gap.length_s,
            "faults": {k: v for k, v in asdict(status.faults).items() if v},
            "dump_s": dumped_s - began_s,
            "restore_s": restored_s - dumped_s,
            "total_s": restored_s - began_s,
        }


def _criu(host: Host, binary: Path, command: str, *options: str) -> None:
    done = host.run(
        [
            *(str(binary), command, "--images-dir", _IMAGES, "--work-dir", _IMAGES),
            *("--manage-cgroups=ignore", *options),
        ]
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-_SAID_CHARACTERS_MAX:]
        raise TrialFailed(f"criu {command} ended with {done.returncode}: {said}")


def in_words(found: Result | None) -> str:
    """A cell of a table."""
    if found is None:
        return MISSING
    return (
        str(found["missing"])
        if "missing" in found
        else spread(found["heartbeat_gap_s"])
    )
