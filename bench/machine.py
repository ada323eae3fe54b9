"""Where and with what it was measured: figures without that say nothing."""

import os
import platform
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import Result


def describe() -> Result:
    """The machine as plain values, with how busy it was to begin with."""
    return {
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "virtual": any("hypervisor" in line.split() for line in _cpu_lines("flags")),
        "transparent_huge_pages": _chosen(
            "/sys/kernel/mm/transparent_hugepage/enabled"
        ),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "bench", *sys.argv[1:]]),
    }


def in_words(machine: Result) -> str:
    """One line of it, for people."""
    virtual = "virtual " if machine["virtual"] else ""
    return (
        f"{machine['cpus']} {virtual}CPUs ({machine['cpu']}), "
        f"{machine['memory_bytes'] / (1 << 30):.0f} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, load {machine['load_average']:.1f} before, "
        f"{machine['date']}"
    )


def _cpu() -> str:
    return next(_cpu_lines("model name"), platform.processor() or "unknown")


def _cpu_lines(key: str) -> Iterator[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()


def _chosen(path: str) -> str | None:
    """The bracketed one of ``always [madvise] never``; None without the file."""
    try:
        words = Path(path).read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)
