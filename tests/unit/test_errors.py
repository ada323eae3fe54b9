"""Outcomes, and what may reach a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import errors
from migrate.errors import MigrateError, Outcome, Reason, printable


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    """0 to 8; only what needs no further care exits with 0."""
    assert {outcome.name: outcome.exit_code for outcome in Outcome} == {
        "ARRIVED": 0,
        "CAN_GO": 0,
        "OUR_BUG": 1,
        "WRONG_ARGUMENTS": 2,
        "REFUSED": 3,
        "NOT_CONNECTED": 4,
        "REFUSED_BY_DESTINATION": 5,
        "ROLLED_BACK": 6,
        "IN_DOUBT": 7,
        "TARGET_ENDED": 8,
    }


@pytest.mark.parametrize("error", MigrateError.__subclasses__())
def test_an_error_says_where_the_process_is(error: type[MigrateError]) -> None:
    """What was attempted, then where the process is, then the way out."""
    said = str(error("It was tried.", way_out="Try again."))
    assert said == f"It was tried. {error.whereabouts} Try again."
    assert error("").exit_code == error.outcome.exit_code


def test_each_failure_has_a_class_of_its_own() -> None:
    """But a bug and wrong arguments, which nobody raises on purpose."""
    raised = {error.outcome for error in MigrateError.__subclasses__()}
    other = {
        Outcome.ARRIVED,
        Outcome.CAN_GO,
        Outcome.OUR_BUG,
        Outcome.WRONG_ARGUMENTS,
    }
    assert raised == set(Outcome) - other
    assert len(MigrateError.__subclasses__()) == len(raised)


def test_reasons_stay_with_their_error() -> None:
    """All of them, in the order in which they were found."""
    reasons = [Reason("tty", "a", 1, 0), Reason("io_uring", "b", 1, 17)]
    assert errors.Refused("No.", reasons=reasons).reasons == tuple(reasons)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis-server", "redis-server"),
        ("häuser/日本", "häuser/日本"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x9b2J", "\\x9b2J"),  # CSI in one character
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),  # right-to-left override
        (b"caf\xe9".decode(errors="surrogateescape"), "caf\\xe9"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    """A process names itself as it likes; it does not steer a terminal."""
    assert printable(text) == shown


@given(
    st.text(st.characters())
    | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    """Whatever comes in, what goes out is printable and can be encoded."""
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
