"""What people do about a hand-over: look, resolve, carry a verdict, interrupt."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.kernel import procfs
from precopy.ids import Pid
from tests.live.census import leaves, processes
from tests.live.handover import LOCKS, eventually, held_locks, kill
from tests.live.handover_stage import Counter, HandoverStage, handover_stage
from tests.live.stage import inside

GO_IS_WRITTEN = "source.go.journalled=kill"
ACCEPTED_IS_HEARD = "source.accepted.heard=kill"


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandoverStage]:
    """The hosts, for all tests here."""
    with handover_stage(tmp_path_factory.mktemp("handover")) as made:
        yield made


@pytest.fixture
def counter(on: HandoverStage) -> Iterator[Counter]:
    """A counting process on a."""
    with on.counter() as made:
        yield made


def in_doubt(on: HandoverStage, counter: Counter, fault: str = GO_IS_WRITTEN) -> str:
    """The mover has died; the transaction, of which nobody takes care."""
    assert on.move(counter, fault=fault).code == -signal.SIGKILL
    counter.assert_stands_still()
    return on.transaction()


def test_status_names_what_is_in_doubt(on: HandoverStage, counter: Counter) -> None:
    """With its state, its process, its peer, and what to type; also as JSON."""
    name = in_doubt(on, counter)
    said = on.migrate(on.a, "status").said
    assert f"{name}  GO: pid {counter.pid} (counter) to {on.to}" in said
    assert f"nobody works on it: migrate resolve {name}" in said
    (row,) = json.loads(on.migrate(on.a, "status", "--json").said)["transactions"]
    assert row["transaction"] == name
    assert row["state"] == "GO"
    assert row["kept"] is False
    assert counter.process.is_alive()
    counter.assert_stands_still()


def test_resolve_asks_again(on: HandoverStage, counter: Counter) -> None:
    """The destination never had it, says so, and it runs on here."""
    name = in_doubt(on, counter)
    done = on.migrate(on.a, "resolve", name[:6])
    assert done.code == 0
    assert f"pid {counter.pid} (counter): runs here." in done.said
    counter.assert_counts_on("a")
    assert on.migrate(on.a, "status").said == (
        "Nothing is under way, and nothing is in doubt.\n"
    )


def test_what_arrived_is_resolved_as_arrived(
    on: HandoverStage, counter: Counter
) -> None:
    """The frozen copy dies, and the other counts on."""
    name = in_doubt(on, counter, ACCEPTED_IS_HEARD)
    done = on.migrate(on.a, "resolve", name)
    assert done.code == 0
    assert "runs at the destination." in done.said
    eventually(lambda: not counter.process.is_alive(), "the copy here is dead")
    counter.assert_counts_on("b")


def test_a_verdict_is_carried_where_no_link_goes(
    on: HandoverStage, counter: Counter
) -> None:
    """Without the destination resolve names the ways out; its token settles it."""
    name = in_doubt(on, counter)
    with on.cut():
        asked = on.migrate(on.a, "resolve", name)
        assert asked.code == 7
        assert f"migrate resolve {name} --decline" in asked.said
        assert f"--i-have-fenced {on.agent.address}" in asked.said
        counter.assert_stands_still()
        declined = on.migrate(on.b, "resolve", name, "--decline")
        assert declined.code == 0
        assert "It never ran here, and never will." in declined.said
        done = on.migrate(on.a, "resolve", name, "--verdict", token(declined.said))
        assert done.code == 0
        counter.assert_counts_on("a")


def test_a_verdict_cannot_take_back_what_was_accepted(
    on: HandoverStage, counter: Counter
) -> None:
    """Asked to decline, the destination says that it runs there; the copy dies here."""
    name = in_doubt(on, counter, ACCEPTED_IS_HEARD)
    with on.cut():
        asked = on.migrate(on.b, "resolve", name, "--decline")
        assert "It was accepted, and runs here." in asked.said
        done = on.migrate(on.a, "resolve", name, "--verdict", token(asked.said))
        assert done.code == 0
        assert "runs at the destination." in done.said
        eventually(lambda: not counter.process.is_alive(), "the copy here is dead")
        counter.assert_counts_on("b")


def token(said: str) -> str:
    (found,) = [x for x in said.splitlines() if x.startswith("migrate-verdict-1:")]
    return found


def test_a_bad_token_thaws_nothing(on: HandoverStage, counter: Counter) -> None:
    """Nonsense, half of one, another transaction's, another journal's: none counts."""
    name = in_doubt(on, counter, ACCEPTED_IS_HEARD)
    stranger = on.migrate(
        on.b, "resolve", name, "--decline", "--state-dir", "/run/another"
    )
    other = on.migrate(on.b, "resolve", "0" * 32, "--decline")
    bad = {
        token(stranger.said): "signed by another journal",
        token(other.said): "about another transaction",
        token(other.said)[:-8]: "no verdict token, or not all of one",
        "nonsense": "no verdict token, or not all of one",
    }
    for text, why in bad.items():
        done = on.migrate(on.a, "resolve", name, "--verdict", text)
        assert done.code == 2
        assert why in done.said
        counter.assert_stands_still()
    assert on.migrate(on.a, "resolve", name).code == 0
    counter.assert_counts_on("b")


def test_who_swears_has_to_type_the_host(on: HandoverStage, counter: Counter) -> None:
    """A wrong name thaws nothing; the right one thaws it, and is kept for good."""
    name = in_doubt(on, counter)
    wrong = on.migrate(on.a, "resolve", name, "--i-have-fenced", "10.9.9.9")
    assert wrong.code == 2
    assert f"went to {on.agent.address}" in wrong.said
    counter.assert_stands_still()
    done = on.migrate(on.a, "resolve", name, "--i-have-fenced", on.agent.address)
    assert done.code == 0
    assert "its time goes back to the freeze" in done.said
    counter.assert_counts_on("a")
    audit = on.a.run(["cat", "/run/migrate/audit.log"], check=True).stdout
    assert f"{name}: uid {os.getuid()} swears that {on.agent.address}" in audit


def test_resolve_finishes_what_needs_no_answer(
    on: HandoverStage, counter: Counter
) -> None:
    """Frozen, but not handed over: it runs on here, whoever can be reached."""
    assert on.move(counter, fault="source.pages.sent=kill").code == -signal.SIGKILL
    counter.assert_stands_still()
    with on.cut():
        done = on.migrate(on.a, "resolve", on.transaction())
    assert done.code == 0
    assert "runs here." in done.said
    counter.assert_counts_on("a")


@pytest.mark.parametrize("words", [["--decline", "--verdict", "x"], ["zz"]])
def test_nonsense_is_refused(on: HandoverStage, words: list[str]) -> None:
    """Two ways at once, and a transaction that nobody knows."""
    name = [] if words == ["zz"] else ["0" * 32]
    assert on.migrate(on.a, "resolve", *name, *words).code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_doubt_can_be_left_to_others(
    on: HandoverStage, counter: Counter, number: signal.Signals
) -> None:
    """A command in doubt that is interrupted ends with 7, and thaws nothing; the agent
    that starts then asks, and settles it."""
    with on.held("destination.go.heard", of_worker=True) as (_, held):
        with on.moving(counter) as moving:
            held.wait()
            on.armed.write_text("")
            assert moving.stderr is not None
            assert b"IN DOUBT" in moving.stderr.readline()
            moving.send_signal(number)
            assert moving.wait() == 7
        counter.assert_stands_still()
    with on.agent_on_a():
        eventually(lambda: not counter.process.is_alive(), "it is settled")
    counter.assert_counts_on("b")


@pytest.mark.parametrize(
    "point",
    [
        "destination.built",
        "destination.state.heard",
        "destination.ready.journalled",
        "destination.accepted.journalled",
    ],
)
def test_an_agent_that_is_told_to_stop_finishes_or_undoes(
    on: HandoverStage, counter: Counter, point: str
) -> None:
    """What was accepted arrives; all else stays, unless Go was faster. The agent ends
    with 0, and the command knows which."""
    with on.held(point, of_worker=True) as (_, held):
        own = on.b.agent(env=on.arming(f"@{on.armed}"))
        with own.process, on.moving(counter, to=own) as moving:
            held.wait()
            own.process.send_signal(signal.SIGTERM)
            eventually(lambda: '"stopping"' in own.log, "it has heard it")
            held.go_on()
            code = moving.wait(40)
            assert own.process.wait(40) == 0
    if point == "destination.accepted.journalled":
        assert code == 0
    assert code in (0, 6)
    counter.assert_counts_on("b" if code == 0 else "a")


def test_a_no_of_an_agent_that_stops_is_heard(
    on: HandoverStage, counter: Counter
) -> None:
    """Also where Go crosses it, and nobody is there to be asked again."""
    with on.held("source.go.journalled") as (fault, held):
        own = on.b.agent()
        with own.process, on.moving(counter, fault, to=own) as moving:
            held.wait()
            own.process.send_signal(signal.SIGTERM)
            # The copy there is ended before it is told.
            eventually(lambda: not leaves(on.b), "it is declined")
            held.go_on()
            assert moving.wait(40) == 6
            assert own.process.wait(40) == 0
    counter.assert_counts_on("a")


def test_it_goes_once_at_a_time(on: HandoverStage, counter: Counter) -> None:
    """A second command is refused while the first is at it, and touches nothing."""
    with on.held("source.greeted") as (fault, held):
        with on.moving(counter, fault) as moving:
            held.wait()
            second = on.move(counter)
            assert second.code == 3
            assert f"pid {counter.pid} is on its way" in second.said
            held.go_on()
            assert moving.wait() == 0
    counter.assert_counts_on("b")


def test_what_would_be_started_again_stays(on: HandoverStage) -> None:
    """Unless that is asked for: two would run, of which we move one."""
    shutil.copy("/bin/sh", on.folder / "runsv")
    asleep = "sleep 600 <&- >&- 2>&- & wait"
    with on.a.popen([on.folder / "runsv", "-c", asleep]) as parent:
        eventually(lambda: bool(procfs.children(Pid(parent.pid))), "it has a child")
        (child,) = procfs.children(Pid(parent.pid))
        eventually(lambda: procfs.stat(child).name == "sleep", "it is another program")
        move = ("--to", on.to, "-q", str(inside(child)))
        refused = on.migrate(on.a, *move)
        assert refused.code == 3
        assert "runsv" in refused.said
        assert on.migrate(on.a, *move, "--supervised").code == 0
        assert parent.wait(40) == 0  # it has seen it end
    (arrived,) = [p for p in processes(on.b) if procfs.stat(Pid(p)).name == "sleep"]
    kill(arrived)


def test_all_of_a_family_get_their_locks_back(on: HandoverStage) -> None:
    """Its mover has died, and each had given up what it held."""
    witnesses = [str(on.folder / f"kin-{number}") for number in range(2)]
    counters = " & ".join(f"{on.program} {witness}" for witness in witnesses)
    script = f"{counters} & exec >&-; wait"
    with on.a.popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as root:
        assert root.stdout is not None
        assert root.stdout.read() == b"ready\n" * 2
        move = ("--to", on.to, "-q", str(root.pid_inside))
        died = on.migrate(on.a, *move, fault="source.state.sent=kill")
        assert died.code == -signal.SIGKILL
        assert held_locks(witnesses[0]) == held_locks(witnesses[1]) == ()
        with on.agent_on_a():
            eventually(
                lambda: all(held_locks(w) == LOCKS for w in witnesses), "all are had"
            )
        for counter in procfs.children(Pid(root.pid)):
            kill(counter)
        assert root.wait(40) == 0


def test_the_next_move_asks_about_the_last(on: HandoverStage, counter: Counter) -> None:
    """Without any agent here, another process that moves settles what is in doubt."""
    in_doubt(on, counter)
    with on.counter() as another:
        assert on.move(another).code == 0
        another.assert_counts_on("b")
        counter.assert_counts_on("a")


def test_an_orphan_is_named_and_stays_frozen(
    on: HandoverStage, counter: Counter
) -> None:
    """Where its journal was lost, nobody knows whether it was handed over."""
    in_doubt(on, counter, ACCEPTED_IS_HEARD)
    on.a.run(["rm", "-rf", "/run/migrate"], check=True)
    said = on.migrate(on.a, "status").said
    assert f"pid {counter.pid} stands frozen in " in said
    with on.agent_on_a():
        counter.assert_stands_still()
    assert f"pid {counter.pid} stands frozen in " in on.migrate(on.a, "status").said
    (one,) = json.loads(on.migrate(on.a, "status", "--json").said)["orphans"]
    assert one["pids"] == [counter.process.pid_inside]
    assert Path(f"/proc/{counter.process.pid}").exists()
