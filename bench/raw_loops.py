"""What the machine does at best (workloads/raw.c, raw_tls.py), in the same run."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import programs
from bench.ground import Ground, TrialFailed

_WITHIN_S: Final = 600.0
ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Loop:
    """So many bytes took so long; ``cpu_s`` is of all ends together."""

    count_bytes: int
    duration_s: float
    cpu_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.count_bytes / self.duration_s

    @property
    def cpu_s_per_gib(self) -> float:
        return self.cpu_s * (1 << 30) / self.count_bytes


def copy(place: Ground, count_bytes: int) -> Loop:
    """memcpy(3), on one CPU."""
    done = place.a.run([programs.raw(), "copy", str(count_bytes)])
    if done.returncode != 0:
        raise TrialFailed(f"The raw copy failed: {done.stderr.strip()}")
    return Loop(count_bytes, *_numbers(done.stdout))


def tcp(place: Ground, count_bytes: int) -> Loop:
    """Blocking write(2) on one host and read(2) on the other, over the same link."""
    return _over_the_link(place, [str(programs.raw())], count_bytes)


def tls(place: Ground, count_bytes: int) -> Loop:
    """The same with TLS, as the product has it."""
    program = [sys.executable, "-m", "bench.raw_tls"]
    return _over_the_link(place, program, count_bytes)


def _over_the_link(place: Ground, program: Sequence[str], count_bytes: int) -> Loop:
    argv = [*program, "receive", place.b.address, str(count_bytes)]
    pipe = subprocess.PIPE
    with place.b.popen(argv, stdout=pipe, cwd=ROOT) as receiver:
        assert receiver.stdout is not None
        try:
            port = receiver.stdout.readline().decode().removeprefix("port ").strip()
            argv = [*program, "send", place.b.address, port, str(count_bytes)]
            with place.a.popen(
                argv, stdout=pipe, stderr=subprocess.STDOUT, cwd=ROOT
            ) as sender:
                assert sender.stdout is not None
                said = sender.stdout.read().decode()
                if sender.wait(_WITHIN_S) != 0:
                    raise TrialFailed(f"The raw loop failed: {said.strip()}")
            duration_s, sender_cpu_s = _numbers(said)
            _, receiver_cpu_s = _numbers(receiver.stdout.read().decode())
            receiver.wait(_WITHIN_S)
        finally:
            receiver.kill()
    return Loop(count_bytes, duration_s, sender_cpu_s + receiver_cpu_s)


def _numbers(said: str) -> tuple[float, float]:
    duration, cpu = said.split()
    return float(duration), float(cpu)
