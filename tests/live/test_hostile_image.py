"""A source with a valid key that lies about one thing of a process that it brings.

It is refused or given up for what is wrong with it; the process that was lied about
runs on, nothing is left, and the next good move works. The numbers are those of the
list of bad inputs (docs/threat-model.md).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.demo import workload
from migrate.testbed import HostProcess
from tests.live.hostile_image import CASES, OF_A_USER
from tests.live.stage import ROOT, Actor, Ended, Stage, eventually, stage

# A case for each line; ``make sweep`` says thorough, and then it is all of them.
FIRST = {case.split()[0]: case for case in reversed(CASES)}
ASKED = CASES if os.environ.get("HOSTILE") == "thorough" else FIRST.values()
OF_NOBODY = """\
import os
os.setgroups([])
os.setresgid(*[65534] * 3)
os.setresuid(*[65534] * 3)
os.execv("/bin/sleep", ["sleep", "600"])
"""
LIAR = (sys.executable, "-m", "tests.live.hostile_image")


class Liar:
    """A source on host a that lies about an actor as often as it is asked to."""

    def __init__(self, here: Stage, actor: Actor, process: HostProcess) -> None:
        self.here = here
        self.actor = actor
        self._process = process

    def tell(self, case: str) -> Ended:
        """One move with this lie, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(case.encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{case}: the source itself is gone"
        told = json.loads(line)
        return Ended(told["code"], told["said"], json.loads(told["report"] or "{}"))

    def assert_nothing_left(self) -> None:
        self.here.assert_nothing_left(self.actor, self._process.pid)


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Liar]:
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    pipe = subprocess.PIPE
    with stage(program) as here, here.actor(rate_mib_s=1) as actor:
        here.b.run(["mkfifo", "/run/pipe"], check=True)
        command = [*LIAR, "--to", here.to, "--json", actor.pid]
        with here.a.popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as process:
            yield Liar(here, actor, process)
            process.kill()
            process.wait()


@pytest.mark.parametrize("case", ASKED)
def test_a_lie(liar: Liar, case: str) -> None:
    """Is found out, for what it is."""
    bugs = liar.here.agent.log.count('"event": "bug"')
    ended = liar.tell(case)
    assert ended.code in (4, 5, 6), ended
    assert CASES[case].said in ended.said, ended
    assert "Traceback" not in ended.said
    liar.assert_nothing_left()
    liar.actor.assert_unharmed()
    assert liar.here.agent.log.count('"event": "bug"') == bugs, liar.here.agent.log


def test_lies_about_a_process_of_a_user(liar: Liar) -> None:
    """Give him nothing that he has not got by himself."""
    a, pipe = liar.here.a, subprocess.PIPE
    with a.popen([sys.executable, "-c", OF_NOBODY]) as process:
        exe = Path(f"/proc/{process.pid}/exe")
        eventually(lambda: exe.readlink().name == "sleep", "it runs its program")
        command = [*LIAR, "--to", liar.here.to, "--json", str(process.pid_inside)]
        with a.popen(command, stdin=pipe, stdout=pipe, cwd=ROOT) as another:
            try:
                about = Liar(liar.here, liar.actor, another)
                for case, lie in OF_A_USER.items():
                    ended = about.tell(case)
                    assert ended.code in (5, 6), (case, ended)
                    assert lie.said in ended.said, (case, ended)
                    assert exe.readlink().name == "sleep", case
            finally:
                for one in (another, process):
                    one.kill()
                    one.wait()
    liar.assert_nothing_left()


def test_the_next_good_move_works(liar: Liar) -> None:
    """After all those lies."""
    liar.here.assert_next_move_works(liar.actor)
