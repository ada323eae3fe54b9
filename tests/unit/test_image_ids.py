"""Users and groups of an image: numbers that there are, and no others."""

from typing import Any

import pytest

from migrate.image import ID_MAX, ImageError, _judge_ids


class Claimed:
    """As much of a process as its ids are judged by."""

    def __init__(self, **changed: Any) -> None:  # noqa: ANN401  any field
        self.pid = 7
        self.process_group = self.session = 7
        self.tasks = (type("Task", (), {"tid": 7})(),)
        self.uids = self.gids = (1000, 1000, 1000)
        self.groups: tuple[int, ...] = ()
        self.executable = b"/bin/true"
        vars(self).update(changed)


@pytest.mark.parametrize("number", [-1, 0xFFFF_FFFF, 1 << 32, -(1 << 63), 1 << 63])
@pytest.mark.parametrize("whose", ["uids", "gids", "groups"])
def test_a_number_that_the_kernel_would_read_otherwise(whose: str, number: int) -> None:
    """-1 is "as it is", which is root; 2^32 is cut down to 0, which is root, too."""
    for place in range(3):
        numbers = [1000, 1000, 1000]
        numbers[place] = number
        with pytest.raises(ImageError, match="number that there is not"):
            _judge_ids(Claimed(**{whose: tuple(numbers)}))  # type: ignore[arg-type]


def test_numbers_that_there_are() -> None:
    """From root's to the last."""
    for number in (0, 65534, ID_MAX):
        _judge_ids(Claimed(uids=(number,) * 3))  # type: ignore[arg-type]
