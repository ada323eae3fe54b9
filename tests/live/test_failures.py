"""A move that fails under way: the right exit code, a sentence, a source unharmed."""

import signal
from collections.abc import Iterator

import pytest

from migrate.demo import workload
from tests.live.stage import Actor, Stage, stage

# Everything that a mover says on its way, before which it can be held.
PHASES = (
    "looking at the process",
    "building its skeleton",
    "round_started",
    "round_progress",
    "round_ended",
    "freezing",
)
MID_ROUND = "round_progress"
# Progress is said every 64 MiB.
SIZE_MIB = 70
START_AGAIN = "The process runs on here, unharmed. Start the move again."


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, for all tests here."""
    program = workload.compiled(tmp_path_factory.mktemp("workload"))
    with stage(program) as made:
        yield made


def size_for(phase: str) -> int:
    return SIZE_MIB if phase == MID_ROUND else 8


@pytest.mark.parametrize("phase", PHASES)
def test_called_off_then_lost_then_moved(on: Stage, phase: str) -> None:
    """The same process, at the same moment of three moves."""
    with on.actor(size_for(phase)) as actor:
        called_off(on, actor, phase)
        with on.begin(actor.pid) as moving:
            moving.hold_before(phase)
            with on.worker() as worker:
                worker.kill()
            moving.end().assert_failed(6, START_AGAIN)
        actor.assert_unharmed()
        on.assert_nothing_left(actor)
        on.assert_next_move_works(actor)


def called_off(on: Stage, actor: Actor, phase: str) -> None:
    with on.begin(actor.pid) as moving:
        moving.hold_before(phase)
        moving.process.send_signal(signal.SIGINT)
        moving.also_hold_before("Calling it off.")
        moving.end().assert_failed(6, "called off", "runs on here")
    actor.assert_unharmed()
    on.assert_nothing_left(actor)


@pytest.mark.parametrize("phase", PHASES)
def test_the_process_is_killed(on: Stage, phase: str) -> None:
    with on.actor(size_for(phase)) as actor:
        with on.begin(actor.pid) as moving:
            moving.hold_before(phase)
            actor.process.kill()
            assert actor.process.wait() == -signal.SIGKILL
            moving.end().assert_failed(8, "ended by itself", "It is gone")
        on.assert_nothing_left()


def test_the_process_exits_in_the_middle_of_a_round(on: Stage) -> None:
    with on.actor(SIZE_MIB) as actor, on.begin(actor.pid) as moving:
        moving.hold_before(MID_ROUND)
        actor.program.quit()
        assert actor.process.wait() == 0
        moving.end().assert_failed(8, "ended by itself", "It is gone")
        on.assert_nothing_left()


def test_a_terminal_that_goes_away_calls_it_off(on: Stage) -> None:
    with on.actor() as actor:
        with on.begin(actor.pid) as moving:
            moving.hold_before("round_ended")
            moving.process.send_signal(signal.SIGHUP)
            moving.also_hold_before("Calling it off.")
            moving.end().assert_failed(6, "called off", "runs on here")
        actor.assert_unharmed()
        on.assert_nothing_left(actor)


def test_a_destination_that_answers_no_more_is_waited_for_only_so_long(
    on: Stage,
) -> None:
    """While the process stands still nobody may keep it waiting."""
    with on.actor() as actor:
        with on.begin(actor.pid) as moving:
            moving.hold_before("freezing")
            with on.worker() as worker:
                worker.send_signal(signal.SIGSTOP)
                moving.end().assert_failed(6, "runs on here, unharmed")
                actor.assert_unharmed()
                worker.send_signal(signal.SIGCONT)
        on.assert_nothing_left(actor)


def test_the_mover_is_killed(on: Stage) -> None:
    """It holds nothing that outlives it, but a cgroup in the freeze."""
    with on.actor(SIZE_MIB) as actor:
        with on.begin(actor.pid) as moving:
            moving.hold_before(MID_ROUND)
            moving.process.kill()
            assert moving.process.wait() == -signal.SIGKILL
        actor.assert_unharmed()
        on.assert_nothing_left(actor)


def test_the_agent_is_told_to_stop(on: Stage) -> None:
    """Its worker undoes what it began."""
    with on.actor(SIZE_MIB) as actor:
        with on.own_agent() as agent, on.begin(actor.pid, to=agent) as moving:
            moving.hold_before(MID_ROUND)
            agent.process.send_signal(signal.SIGTERM)
            # Both at once: the agent waits for its worker, that for the mover.
            moving.end().assert_failed(6, "The agent there was told to stop. The")
            assert agent.process.wait() == 0
        actor.assert_unharmed()
        on.assert_nothing_left(actor)


def test_an_agent_that_is_killed_is_not_missed(on: Stage) -> None:
    """An arrival has a process of its own, and goes on."""
    with on.actor(SIZE_MIB) as actor, on.own_agent() as agent:
        with on.begin(actor.pid, to=agent) as moving:
            moving.hold_before(MID_ROUND)
            agent.process.kill()
            agent.process.wait()
            ended = moving.end()
            assert ended.code == 0, ended
        assert actor.process.wait() == -signal.SIGKILL


def test_the_power_of_the_destination_is_cut(on: Stage) -> None:
    there = on.bed.host("there")
    with on.actor(SIZE_MIB) as actor:
        with on.begin(actor.pid, to=there.agent()) as moving:
            moving.hold_before(MID_ROUND)
            there.close()
            moving.end().assert_failed(6, START_AGAIN)
        actor.assert_unharmed()
        on.assert_nothing_left(actor)


def test_the_cable_is_pulled(on: Stage) -> None:
    """Both ends notice by themselves, and the destination ends what it has."""
    with on.actor(SIZE_MIB) as actor:
        with on.begin(actor.pid) as moving:
            moving.hold_before(MID_ROUND)
            on.b.run(["ip", "link", "set", "eth0", "down"], check=True)
            try:
                moving.end().assert_failed(6, START_AGAIN)
                actor.assert_unharmed()
                on.assert_nothing_left(actor)
            finally:
                on.b.run(["ip", "link", "set", "eth0", "up"], check=True)


def test_the_time_that_was_allowed_is_over(on: Stage) -> None:
    with on.actor() as actor:
        ended = on.move(actor, "--timeout", "0.01")
        ended.assert_failed(6, "0.01 s", "runs on here, unharmed")
        actor.assert_unharmed()
        on.assert_nothing_left(actor)


@pytest.mark.parametrize("rounds", [("--max-rounds", "1"), ()])
def test_writes_that_outrun_the_link_are_told_in_figures(
    on: Stage, rounds: tuple[str, ...]
) -> None:
    with on.actor(16, rate_mib_s=500) as actor:
        # No downtime is as short as that.
        options = ("--on-stall", "abort", "--downtime-limit", "1", *rounds)
        ended = on.move(actor, *options)
        ended.assert_failed(
            6,
            "writes faster than the link carries",
            "and 0.001 s are allowed",
            "Raise --downtime-limit",
        )
        assert f"after {len(ended.report['rounds'])} round" in ended.said
        assert bool(rounds) == (len(ended.report["rounds"]) == 1)
        actor.assert_unharmed()
        on.assert_nothing_left(actor)
