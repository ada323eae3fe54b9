"""The C programs of the bench, compiled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from migrate.demo import compiling, workload

_OURS: Final = Path(__file__).parent / "workloads"
_CONTROL: Final = [workload.HERE / name for name in workload.CONTROL_SOURCES]
_METER: Final = [_OURS / "meter.c", _OURS / "meter.h"]


def demo() -> Path:
    """The workload of ``migrate demo``: memory that is written to at a rate."""
    return workload.compiled()


def crowd() -> Path:
    """Many threads, files or mappings; see workloads/crowd.c."""
    return _compiled("crowd", _CONTROL)


def store() -> Path:
    """Keys and values, served by one thread; see workloads/store.c."""
    return _compiled("store", [*_CONTROL, *_METER])


def stream() -> Path:
    """A reader of memory; see workloads/stream.c."""
    return _compiled("stream", [*_CONTROL, *_METER])


def raw() -> Path:
    """The loops to compare with; see workloads/raw.c."""
    return _compiled("raw", [])


def _compiled(name: str, more: Sequence[Path]) -> Path:
    return compiling.compiled(name, [_OURS / f"{name}.c", *more])
