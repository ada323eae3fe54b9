"""The demo: what the README promises first."""

import json
import subprocess
import sys
from pathlib import Path

from migrate.report import Report

ROOT = Path(__file__).parents[2]
DEMO = (sys.executable, "-m", "migrate", "demo", "--size", "32M", "--rate", "20M")


def test_a_program_moves_and_says_so_itself() -> None:
    """With its rounds, the downtime in parts, and the gap that it saw."""
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for said in ("round", "Downtime", "handover", "own gap", "is what it was"):
        assert said in done.stdout


def test_json_is_the_report_of_its_migration() -> None:
    """And nothing else is on stdout."""
    done = subprocess.run([*DEMO, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = Report.from_json(json.loads(done.stdout))
    assert report.outcome.exit_code == 0
    assert report.resident_bytes > 32 << 20


def test_without_root_it_is_a_sentence() -> None:
    """Namespaces are root's to make."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("migrate: The demo makes two hosts")
    assert done.stderr.count("\n") == 1


# Imported before it drops its rights: nobody may not read our files everywhere.
AS_NOBODY = """
import os
from migrate.cli import run
from migrate.demo import command
os.seteuid(65534)
raise SystemExit(run(["demo"]))
"""
