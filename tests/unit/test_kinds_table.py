"""Every kind is found, says who it is, and its records travel strictly."""

import dataclasses
import pkgutil
from pathlib import Path

import msgspec
import pytest

import migrate.kinds
from migrate.kinds import table
from migrate.kinds.eventfd import KIND, Eventfd
from migrate.kinds.kind import CannotCarry, Parking, Scope
from migrate.kinds.table import Dumped

SCENARIOS = Path(__file__).parents[1] / "live" / "scenarios"
NAMES = sorted(
    name
    for _, name, _ in pkgutil.iter_modules(migrate.kinds.__path__)
    if name not in ("kind", "table")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_is_complete(name: str) -> None:
    """Its name is its file's, its record is plain and frozen, a scenario tries it."""
    kind = table.kind(name)
    assert kind.name == name
    assert kind.version >= 1
    assert dataclasses.is_dataclass(kind.record)
    assert kind.record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    msgspec.msgpack.Decoder(kind.record)
    assert (SCENARIOS / f"{name}.c").exists()
    for other in kind.after:
        assert table.kind(other).scope is kind.scope


def test_every_kind_has_its_place() -> None:
    """Each is of one scope, and comes after those that it says."""
    places = {
        Scope.DESCRIPTOR: [module.KIND for module in table.descriptor_kinds()],
        Scope.PROCESS: [module.KIND for module in table.process_kinds()],
        Scope.TASK: [module.KIND for module in table.task_kinds()],
    }
    assert sorted(kind.name for kinds in places.values() for kind in kinds) == NAMES
    for scope, kinds in places.items():
        before: set[str] = set()
        for kind in kinds:
            assert kind.scope is scope
            assert set(kind.after) <= before
            before.add(kind.name)


def test_a_record_comes_back_as_it_went() -> None:
    """What is packed is what is unpacked; equal records are equal bytes."""
    record = Eventfd(count=2**64 - 2, semaphore=True, nonblocking=False)
    dumped = table.pack(KIND, record)
    assert table.unpack(dumped) == record
    assert table.pack(KIND, dataclasses.replace(record)) == dumped


@pytest.mark.parametrize(
    ("dumped", "words"),
    [
        (Dumped("socket", 1, b""), "no kind that is known here"),
        (Dumped("kind", 1, b""), "no kind that is known here"),
        (Dumped("eventfd", 2, b""), "sends version 2 of eventfd, and version 1"),
        (Dumped("eventfd", 1, b""), "makes no sense"),
        (Dumped("eventfd", 1, b"\x80"), "makes no sense"),
        (Dumped("eventfd", 1, msgspec.msgpack.encode({"count": "7"})), "no sense"),
    ],
)
def test_what_is_no_record_is_refused(dumped: Dumped, words: str) -> None:
    """Unknown kinds, other versions and odd bytes end in a sentence."""
    with pytest.raises(CannotCarry, match=words):
        table.unpack(dumped)


def test_a_process_kind_is_no_descriptor() -> None:
    """A name that is known is not enough: it must be a descriptor's."""
    with pytest.raises(CannotCarry, match="not a kind of descriptor"):
        table.descriptor_kind("file_lock")


def test_a_spare_number_is_nobodys() -> None:
    """Never wanted, never given twice; gaps are used when there is nothing above."""
    parking = Parking(wanted=[0, 1, 4, 6], limit=9)
    assert not parking.leave(4)
    assert parking.leave(3)
    assert [parking.spare() for _ in range(4)] == [7, 8, 2, 5]
    with pytest.raises(CannotCarry, match="All 9 descriptor numbers are in use"):
        parking.spare()
