"""Lists of processors, as the kernel writes them."""

import pytest

from migrate.kinds.affinity import parse_list


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0\n", {0}), ("0-3,8\n", {0, 1, 2, 3, 8}), ("2,4-5\n", {2, 4, 5})],
)
def test_a_list_is_read(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers
