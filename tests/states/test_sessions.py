"""Whole sessions in simulated time, by seed: never two, never none, in one line.

MIGRATE_SEED=N plays that one again; MIGRATE_WALK=all plays more of them.
"""

import os
from collections import Counter
from dataclasses import replace
from typing import Final

import pytest

from tests.states import broken_owners as broken
from tests.states.hosts import Copy
from tests.states.sessions import Broken, Odds, play

THOROUGH: Final = os.environ.get("MIGRATE_WALK") == "all"
SEED: Final = os.environ.get("MIGRATE_SEED")
SEEDS: Final = [int(SEED)] if SEED else range(5_000 if THOROUGH else 60)

CALM: Final = Odds(crash=0.0, cut=0.0)
KILLED: Final = Odds()
EVERYTHING: Final = Odds(crash=0.06, power_cut=0.004, cut=0.1, failed_write=0.1)
ODDS: Final = {"calm": CALM, "killed and cut": KILLED, "everything": EVERYTHING}


@pytest.mark.parametrize("name", ODDS)
def test_every_session_ends_with_one_copy(name: str) -> None:
    """Or with none, where a machine died; and what it counts has no gap, and no number
    twice. All endings are reached."""
    ends: Counter[str] = Counter()
    for seed in SEEDS:
        session = play(seed, ODDS[name])
        runs = [at for at, copy in session.process.copies.items() if copy is Copy.RUNS]
        ends["".join(runs)] += 1
    print(f"{name}: {dict(ends)}")
    if SEED is None:
        wanted = {"calm": {"D"}, "killed and cut": {"S", "D"}}
        assert set(ends) == wanted.get(name, {"S", "D", ""})


def test_the_same_seed_is_the_same_session() -> None:
    """To the last fault."""
    first, again = play(7, EVERYTHING), play(7, EVERYTHING)
    assert first.said == again.said
    assert first.process.witness == again.process.witness


MUTANTS: Final = {
    "the source thaws at Go when it starts": replace(
        KILLED, source=broken.ThawsGoWhenItStarts
    ),
    "it forgets what it accepted": replace(
        KILLED, destination=broken.ForgetsWhatItAccepted
    ),
    "it declines what it accepted": replace(
        KILLED, destination=broken.DeclinesWhatItAcceptedWhenItStarts
    ),
}


def play_many(odds: Odds) -> None:
    for seed in range(400):
        play(seed, odds)


@pytest.mark.parametrize("odds", MUTANTS.values(), ids=MUTANTS.keys())
def test_dice_find_a_broken_promise(odds: Odds) -> None:
    """Each of these breaks it in one of many sessions."""
    with pytest.raises(Broken) as found:
        play_many(odds)
    print(str(found.value).partition("\n")[0])
