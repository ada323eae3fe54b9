"""The command line of the bench: wrong arguments are told before anything is done."""

from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from bench import command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["swiftness"], "is not one of"),
        (["downtime", "--size", "1000"], "whole number of MiB"),
        (["downtime", "--size", "big"], "is not a size"),
        (["downtime", "--write-rate", "1k"], "MiB a second"),
        (["downtime", "--pages", "2k"], "is not one of"),
        (["downtime", "--runs", "0"], "not in the range"),
        (["downtime", "--peer", "qemu"], "is not"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_argument_is_named(arguments: Sequence[str], said: str) -> None:
    done = CliRunner().invoke(command.main, list(arguments))
    assert done.exit_code == 2
    assert said in done.output


def test_every_option_of_a_number_may_come_again() -> None:
    context = command.main.make_context(
        "bench",
        ["downtime", "cpu", "--size", "64M", "--size", "2G", "--write-rate", "0"],
    )
    assert context.params["names"] == ("downtime", "cpu")
    assert context.params["sizes_bytes"] == (64 << 20, 2 << 30)
    assert context.params["write_rates_bytes_per_s"] == (0,)
    assert context.params["link_rates_bytes_per_s"] == ()
