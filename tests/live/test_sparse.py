"""64 GiB of reserved addresses with 100 MiB in them cost like 100 MiB."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from migrate.demo import workload
from tests.live import targets
from tests.live.stage import Stage, stage

TOUCHED_BYTES: Final = 100 << 20
# Of the program itself and its libraries, and of the frames around the pages.
BESIDES_BYTES: Final = 4 << 20
# Page tables of what the C library and the stack have touched in another place.
TABLES_BYTES: Final = 256 << 10


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, for all tests here."""
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as made:
        yield made


def status_bytes(pid: int, name: str) -> int:
    """A line of proc_pid_status(5) that counts kB."""
    text = Path(f"/proc/{pid}/status").read_text()
    (number,) = re.findall(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(number) << 10


@pytest.mark.parametrize("tracker", ["uffd-wp", "everything"])
def test_what_was_never_touched_costs_nothing(on: Stage, tracker: str) -> None:
    program = targets.compiled("sparse", on.workload.parent)
    with on.a.popen([program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b""
        tables = status_bytes(process.pid, "VmPTE")
        resident = status_bytes(process.pid, "VmRSS")
        with on.begin(str(process.pid_inside), "--tracker", tracker) as moving:
            moving.hold_before("freezing")
            assert status_bytes(process.pid, "VmPTE") <= tables + TABLES_BYTES
            assert status_bytes(process.pid, "VmRSS") <= resident + BESIDES_BYTES
            moved = moving.end()
        assert moved.code == 0, moved
    first = moved.report["rounds"][0]
    assert TOUCHED_BYTES <= first["bytes_raw"] < TOUCHED_BYTES + BESIDES_BYTES
    assert first["bytes_wire"] < TOUCHED_BYTES + BESIDES_BYTES
    (there,) = moved.report["processes"]
    with on.b.process(there["destination_pid"]) as arrived:
        assert status_bytes(arrived.pid, "VmPTE") <= tables + TABLES_BYTES
        assert status_bytes(arrived.pid, "VmRSS") <= resident + BESIDES_BYTES
        arrived.kill()
