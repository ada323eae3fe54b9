"""Every bench runs and says what it promises; how fast anything was is not judged."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SUMMARY = {"min", "median", "max", "p90", "p99"}
TINY = ("--size", "8M", "--runs", "1")


def bench(*arguments: str, path: Path | None = None) -> dict[str, Any]:
    """What it found; ``path`` comes first on PATH."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--json", "-"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["bench"] == arguments[0]
    assert {"cpu", "kernel", "date", "command", "load_average"} <= set(found["machine"])
    for result in found["results"]:
        assert result["failures"] == []
    return found


def is_summary(found: Any) -> bool:  # noqa: ANN401  as it came out of JSON
    return (
        set(found) == SUMMARY and 0 <= found["min"] <= found["median"] <= found["max"]
    )


def test_downtime_has_our_figure_and_the_targets_own() -> None:
    """And its parts; of a client's view it says why there is none."""
    (result,) = bench("downtime", *TINY, "--write-rate", "1M", "--pages", "4k")[
        "results"
    ]
    assert result["size_bytes"] == 8 << 20
    assert result["write_rate_bytes_per_s"] == 1 << 20
    assert (result["pages"], result["runs"]) == ("4k", 1)
    for name in ("downtime_s", "heartbeat_gap_s", "total_s", "command_s", "frozen_s"):
        assert is_summary(result[name]), name
    assert result["heartbeat_gap_s"]["min"] > 0
    assert result["downtime_s"]["median"] == pytest.approx(
        result["frozen_s"]["median"] + result["pause_s"]["median"]
    )
    assert result["client_gap_s"] is None
    assert "no sockets" in result["client_gap_missing"]
    assert set(result["downtime_parts_s"]) == {
        *("freeze", "scan", "dump", "send", "restore", "handover")
    }
    assert all(part >= 0 for part in result["downtime_parts_s"].values())
    assert result["peer"] == {}


def test_scale_has_each_number_alone() -> None:
    results = bench(
        *("scale", "--threads", "9", "--files", "30", "--vmas", "40", "--runs", "1")
    )["results"]
    assert [(r["threads"], r["files"], r["vmas"]) for r in results] == [
        (2, 0, 0),
        (9, 0, 0),
        (2, 30, 0),
        (2, 0, 40),
    ]
    assert all(is_summary(result["downtime_s"]) for result in results)


def test_throughput_is_beside_the_loops_of_the_same_run() -> None:
    (result,) = bench("throughput", *TINY)["results"]
    for raw in ("raw_tls", "raw_tcp", "raw_copy"):
        assert result[f"{raw}_bytes_per_s"] > 0, raw
    assert result["ratio"] == pytest.approx(
        result["bytes_per_s"] / result["raw_tls_bytes_per_s"]
    )


def test_encryption_is_compared_with_bare_links_of_the_same_run() -> None:
    (result,) = bench("encryption", *TINY)["results"]
    assert is_summary(result["total_s_tls"]) and is_summary(result["total_s_clear"])
    assert result["total_s_ratio"] == pytest.approx(
        result["total_s_tls"]["median"] / result["total_s_clear"]["median"]
    )


def test_brownout_compares_each_workload_with_itself() -> None:
    results = bench(
        "brownout", *TINY, "--write-rate", "1M", "--window", "0.2", "--heartbeat", "500"
    )["results"]
    assert len({result["workload"] for result in results}) == 3
    for result in results:
        assert result["throughput_ratio"] > 0
        assert result["p99_added_s"] is not None
        for phase in result["phases"].values():
            assert phase["per_s"] > 0
            assert (
                phase["p50_s"] <= phase["p90_s"] <= phase["p99_s"] <= phase["p99.9_s"]
            )


def test_convergence_says_what_was_written_and_sent() -> None:
    results = bench(
        *("convergence", *TINY, "--link-rate", "1Gbit"),
        *("--write-rate", "0", "--write-rate", "20M"),
    )["results"]
    still, written = results
    assert still["achieved_bytes_per_s"] == 0
    assert written["achieved_bytes_per_s"] > 0
    for result in results:
        assert result["link_bytes_per_s"] == 125_000_000
        assert result["rounds"]["min"] >= 1
        assert result["sent_of_memory"]["min"] >= 0.9


def test_no_more_goes_through_a_link_than_it_carries() -> None:
    """A bucket's worth more, at most; and afterwards it is as it was."""
    slow, free = bench(
        *("link", *TINY, "--write-rate", "0"),
        *("--link-rate", "100Mbit", "--link-rate", "none"),
    )["results"]
    assert 0 < slow["wire_of_link"] < 1.2
    assert is_summary(slow["memory_bytes_per_s"])
    assert free["wire_of_link"] is None
    assert free["wire_bytes_per_s"]["min"] > slow["wire_bytes_per_s"]["max"]


def test_cpu_counts_both_ends() -> None:
    (result,) = bench("cpu", *TINY)["results"]
    for name in ("source", "destination", "raw_tls", "raw_copy"):
        assert is_summary(result[f"{name}_cpu_s_per_gib"])
    assert result["source_cpu_s_per_gib"]["min"] > 0
    assert result["destination_cpu_s_per_gib"]["min"] > 0
    assert result["ratio"] > 0


def test_a_folder_has_the_page_and_all_that_it_shows(tmp_path: Path) -> None:
    pytest.importorskip(
        "matplotlib", reason="pictures are an extra: pip install .[bench]"
    )
    bench(
        *("downtime", *TINY, "--write-rate", "0", "--pages", "huge"),
        *("--plots", str(tmp_path / "found")),
    )
    made = {path.name for path in (tmp_path / "found").iterdir()}
    assert made == {
        *("index.html", "downtime.json", "downtime.md"),
        *("downtime.png", "heartbeat.png"),
    }
    assert "data:image/png" in (tmp_path / "found" / "index.html").read_text()


def test_without_a_criu_it_says_so() -> None:
    if programs_on_path("criu"):
        pytest.skip("there is a criu on PATH")
    (result,) = bench(
        *("downtime", *TINY, "--write-rate", "0", "--pages", "4k", "--peer", "criu")
    )["results"]
    assert "no criu" in result["peer"]["criu"]["missing"]


# Freezes and thaws where the real one would write images and read them.
STAND_IN = f"""#!{sys.executable}
import sys
from pathlib import Path
from migrate.kernel.cgroups import Leaf, current
from precopy.ids import Pid
command, folder, last = sys.argv[1], Path(sys.argv[3]), sys.argv[-1]
if command == "dump":
    leaf = Leaf.create(current(Pid(int(last))), "stand-in")
    leaf.adopt(Pid(int(last)))
    leaf.freeze()
    assert leaf.wait_frozen(10)
    (folder / "leaf").write_text(leaf.path)
else:
    leaf = Leaf((folder / "leaf").read_text())
    leaf.thaw()
    leaf.dissolve()
leaf.close()
"""


def test_a_peer_is_measured_with_the_same_workload(tmp_path: Path) -> None:
    """What it does to the program is told, and not held against us."""
    binary = tmp_path / "criu"
    binary.write_text(STAND_IN)
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    (result,) = bench(
        *("downtime", *TINY, "--write-rate", "0", "--pages", "4k", "--peer", "criu"),
        path=tmp_path,
    )["results"]
    found = result["peer"]["criu"]
    assert found["failures"] == []
    for name in ("heartbeat_gap_s", "dump_s", "restore_s", "total_s"):
        assert is_summary(found[name])
    # It stood still until somebody restored it.
    assert found["heartbeat_gap_s"]["min"] > 0.001


def programs_on_path(name: str) -> bool:
    return any(
        os.access(Path(folder) / name, os.X_OK)
        for folder in os.environ["PATH"].split(os.pathsep)
    )
