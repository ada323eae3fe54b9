"""A peer with a valid key that says what no source would say.

It never gets more than a refusal: the agent goes on, nothing is left, and the next good
move works. The numbers are those of the list of bad inputs (docs/threat-model.md).
"""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate import config_directory
from migrate.demo import workload
from migrate.kernel import cgroups
from migrate.testbed import keys
from precopy.ids import Pid
from tests.live import hostile_peer
from tests.live.stage import ROOT, Ended, Stage, address, eventually, stage

HOSTILE = (sys.executable, "-m", "tests.live.hostile_peer")
OF_NOBODY = """\
import os, time
os.setgroups([])
os.setresgid(*[65534] * 3)
os.setresuid(*[65534] * 3)
print(flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as both:
        yield both


def config(host_pid: int) -> Path:
    return Path(f"/proc/{host_pid}/root{keys.FOLDER}")


def events(here: Stage, name: str) -> list[dict[str, object]]:
    lines = [line for line in here.agent.log.splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_whatever_is_said_on_the_wire(here: Stage) -> None:
    """Every case ends at once with a refusal, an abort, or the end of the link."""
    done = here.a.run([*HOSTILE, "wire", here.to], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert set(outcomes) == {name for name, _ in hostile_peer.wire_cases()}
    strange = {
        name: outcome
        for name, outcome in outcomes.items()
        if set(outcome.split()) - {"Abort", "Refused", "Pong", "closed"}
    }
    assert strange == {}
    assert events(here, "bug") == []
    here.assert_nothing_left()
    with here.actor() as actor:
        here.assert_next_move_works(actor)


def test_who_dawdles_is_not_waited_for(here: Stage) -> None:
    """Neither for the rest of a frame nor for the next, however slowly it goes on."""
    file = config(here.b.pid) / "agent.toml"
    try:
        config_directory.write_ours(file, "greeting_s = 0.5\n", anew=False)
        done = here.a.run([*HOSTILE, "dawdle", here.to], cwd=ROOT)
    finally:
        file.unlink()
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert {outcome.split()[-1] for outcome in outcomes.values()} == {"closed"}, (
        outcomes
    )
    assert events(here, "bug") == []
    here.assert_nothing_left()


@pytest.mark.parametrize("case", sorted(hostile_peer.IMAGE_CASES))
def test_a_lie_about_a_process(here: Stage, case: str) -> None:
    """Is refused before it is believed; the process that was lied about runs on."""
    with here.actor() as actor:
        lied = here.a.run(
            [*HOSTILE, "image", case, "--to", here.to, "--json", actor.pid], cwd=ROOT
        )
        ended = Ended(lied.returncode, lied.stderr, json.loads(lied.stdout))
        assert ended.code in (5, 6), ended
        assert "Traceback" not in ended.said
        assert events(here, "bug") == []
        here.assert_nothing_left(actor)
        actor.assert_unharmed()


def test_the_next_good_move_works(here: Stage) -> None:
    """After all those lies."""
    with here.actor() as actor:
        here.assert_next_move_works(actor)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("", "No rule allows user root (uid 0)"),
        ('[[allow_in]]\nuser = "*"\n', "No rule allows user root (uid 0)"),
        ('[[allow_in]]\nuser = "nobody"\n', "No rule allows user root (uid 0)"),
        ('[[allow_in]]\nuser = "root"\nexe = ["/opt/*"]\n', "is none of /opt/*"),
        ('[[allow_in]]\nuser = "root"\nmemory_max = "4M"\n', "bytes of memory"),
        ('[[allow_in]]\nuser = "root"\n[[deny_in]]\nuser = "root"\n', "deny_in"),
    ],
)
def test_the_policy_decides(here: Stage, rules: str, said: str) -> None:
    """A valid key opens nothing by itself; each refusal is a line of the log."""
    file = config(here.b.pid) / "peers.d" / f"{here.a.address}.toml"
    before = file.read_text()
    head = before.split("\n\n")[0]
    try:
        config_directory.write_ours(file, f"{head}\n\n{rules}", anew=False)
        with here.actor() as actor:
            moved = here.move(actor)
            moved.assert_failed(6 if "memory" in said else 5, said)
            actor.assert_unharmed()
            here.assert_nothing_left(actor)
    finally:
        config_directory.write_ours(file, before, anew=False)
    log = Path(f"/proc/{here.b.pid}/root/run/migrate/decisions.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    if "memory" not in said:
        assert lines[-1]["verdict"] == "denied" and said in lines[-1]["reason"]
    assert lines[-1]["exe"] == str(here.workload) and lines[-1]["uid"] == 0


@pytest.mark.parametrize("exists", [True, False])
def test_the_policy_names_the_cgroup(here: Stage, exists: bool) -> None:
    """In which it lives over there; nobody makes it."""
    file = config(here.b.pid) / "peers.d" / f"{here.a.address}.toml"
    before = file.read_text()
    head = before.split("\n\n")[0]
    guests = here.b.cgroup / "guests"
    named = f"{cgroups.current(Pid(here.b.pid))}/guests"
    rule = f'[[allow_in]]\nuser = "root"\nslice = "{named}"\n'
    if exists:
        guests.mkdir()
    try:
        config_directory.write_ours(file, f"{head}\n\n{rule}", anew=False)
        with here.actor() as actor:
            moved = here.move(actor)
            if exists:
                (process,) = moved.report["processes"]
                with here.b.process(process["destination_pid"]) as arrived:
                    assert cgroups.current(Pid(arrived.pid)) == named
            else:
                moved.assert_failed(5, f"the slice {named}, which is not there")
                actor.assert_unharmed()
                here.assert_nothing_left(actor)
    finally:
        config_directory.write_ours(file, before, anew=False)
        if exists:
            # Who was killed counts until his last task has gone.
            events = guests / "cgroup.events"
            eventually(lambda: "populated 0" in events.read_text(), "it is empty")
            guests.rmdir()


def test_the_source_decides_too(here: Stage) -> None:
    """What may not leave is not offered."""
    file = config(here.a.pid) / "peers.d" / f"{here.b.address}.toml"
    before = file.read_text()
    try:
        config_directory.write_ours(file, before.split("\n\n")[0], anew=False)
        with here.actor() as actor:
            here.move(actor).assert_failed(3, "does not let it go to")
            actor.assert_unharmed()
    finally:
        config_directory.write_ours(file, before, anew=False)


@pytest.mark.parametrize(("name", "codes"), [("a", (3,)), ("b", (5,))])
def test_what_cannot_be_written_down_is_not_done(
    here: Stage, name: str, codes: tuple[int, ...]
) -> None:
    """The disk that the decisions are logged on is full, here or there."""
    folder, log = "/run/migrate", "/run/migrate/decisions.jsonl"
    arrange = f"mkdir -p {folder}; touch {log}; mount --bind /dev/full {log}"
    host = {"a": here.a, "b": here.b}[name]
    host.run(["sh", "-ec", arrange], check=True)
    try:
        with here.actor() as actor:
            here.move(actor).assert_failed(codes[0], "No space left on device")
            actor.assert_unharmed()
            here.assert_nothing_left(actor)
    finally:
        host.run(["umount", log], check=True)


@pytest.mark.parametrize("count", [8, 12])
def test_an_agent_without_descriptors(here: Stage, count: int) -> None:
    """The arrival fails, at whatever it could not open, and the next one does not."""
    what = resource.RLIMIT_NOFILE
    with here.actor() as actor, here.own_agent() as agent:
        before = resource.prlimit(agent.process.pid, what)
        resource.prlimit(agent.process.pid, what, (count, before[1]))
        ended = here.run("--to", address(agent), "--json", "--timeout", "5", actor.pid)
        resource.prlimit(agent.process.pid, what, before)
        assert ended.code in (4, 5, 6), ended
        actor.assert_unharmed()
        assert here.run("--to", address(agent), "--json", actor.pid).code == 0


def test_strangers_and_changed_keys(here: Stage) -> None:
    """A third host, known to nobody, gets nowhere; one that knows no key asks."""
    file = config(here.a.pid) / "peers.d" / f"{here.b.address}.toml"
    before = file.read_text()
    pinned = next(line for line in before.splitlines() if "SHA256" in line)
    other = 'fingerprint = "SHA256:' + "0" * 64 + '"'
    with here.actor() as actor:
        try:
            config_directory.write_ours(file, before.replace(pinned, other), anew=False)
            changed = here.move(actor)
            changed.assert_failed(4, "0" * 64, pinned.split('"')[1])
            file.unlink()
            here.move(actor).assert_failed(4, f"migrate pair {here.to}")
        finally:
            config_directory.write_ours(file, before, anew=False)
        theirs = config(here.b.pid) / "peers.d" / f"{here.a.address}.toml"
        known = theirs.read_text()
        try:
            theirs.unlink()
            here.move(actor).assert_failed(4, "migrate pair --accept")
        finally:
            config_directory.write_ours(theirs, known, anew=False)
        actor.assert_unharmed()
        here.assert_nothing_left(actor)
    assert any("not known here" in str(e["why"]) for e in events(here, "not let in"))


def test_groups_that_are_not_one_s_own(here: Stage) -> None:
    """A user of the destination does not get into a group by way of a peer."""
    file = config(here.b.pid) / "peers.d" / f"{here.a.address}.toml"
    before = file.read_text()
    head = before.split("\n\n")[0]
    rule = '[[allow_in]]\nuser = "nobody"\n'
    process = here.a.popen([sys.executable, "-c", OF_NOBODY], stdout=-1)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        try:
            config_directory.write_ours(file, f"{head}\n\n{rule}", anew=False)
            lied = here.a.run(
                [
                    *(*HOSTILE, "image", "70 supplementary disk"),
                    *("--to", here.to, str(process.pid_inside)),
                ],
                cwd=ROOT,
            )
            assert "is not in the groups disk (6) here" in lied.stderr, lied
            assert lied.returncode == 5
        finally:
            config_directory.write_ours(file, before, anew=False)
            process.kill()
            process.wait()
