"""Every kind there is: found in this folder, ordered by what each comes after."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, cast

import msgspec

import migrate.kinds
from migrate.kinds.kind import (
    CannotCarry,
    DescriptorKind,
    Kind,
    ProcessKind,
    Record,
    Scope,
    TaskKind,
)

if TYPE_CHECKING:
    from types import ModuleType

    from migrate.kernel.procfs import FdView

_NOT_KINDS = frozenset({"kind", "table"})


@dataclass(frozen=True, slots=True)
class Dumped:
    """A record as it travels."""

    kind: str
    version: int
    body: bytes  # msgpack


@functools.cache
def _modules() -> dict[str, ModuleType]:
    """Each kind's module by its name, those it comes after before it."""
    found = {
        name: importlib.import_module(f"migrate.kinds.{name}")
        for _, name, _ in pkgutil.iter_modules(migrate.kinds.__path__)
        if name not in _NOT_KINDS
    }
    # graphlib keeps the order of insertion among equals, and iter_modules sorts by
    # name: both sides restore in the same order.
    graph = {name: set(module.KIND.after) for name, module in found.items()}
    return {name: found[name] for name in TopologicalSorter(graph).static_order()}


@functools.cache
def _scoped(scope: Scope) -> tuple[ModuleType, ...]:
    return tuple(m for m in _modules().values() if m.KIND.scope is scope)


def descriptor_kinds() -> tuple[DescriptorKind, ...]:
    """The kinds of descriptors, in the order of restoring."""
    return cast("tuple[DescriptorKind, ...]", _scoped(Scope.DESCRIPTOR))


def process_kinds() -> tuple[ProcessKind, ...]:
    """The kinds that belong to a process, in the order of restoring."""
    return cast("tuple[ProcessKind, ...]", _scoped(Scope.PROCESS))


def task_kinds() -> tuple[TaskKind, ...]:
    """The kinds that belong to a task, in the order of restoring."""
    return cast("tuple[TaskKind, ...]", _scoped(Scope.TASK))


def kind(name: str) -> Kind:
    """What the kind of this name says of itself.

    Raises:
        CannotCarry: there is none.
    """
    try:
        return cast("Kind", _modules()[name].KIND)
    except KeyError:
        raise CannotCarry(
            name, f"The peer sent a {name!r}, which is no kind that is known here."
        ) from None


def descriptor_kind(name: str) -> DescriptorKind:
    """The module of the descriptor kind of this name.

    Raises:
        CannotCarry: there is none, or it is not a descriptor's.
    """
    if kind(name).scope is not Scope.DESCRIPTOR:
        raise CannotCarry(name, f"{name!r} is not a kind of descriptor.")
    return cast("DescriptorKind", _modules()[name])


def claim(view: FdView) -> DescriptorKind | None:
    """The kind that carries this descriptor; None if none does.

    Raises:
        CannotCarry: two say it is theirs.
    """
    claimants = [module for module in descriptor_kinds() if module.claims(view)]
    if len(claimants) > 1:
        names = " and ".join(module.KIND.name for module in claimants)
        raise CannotCarry(
            "descriptors",
            f"fd {view.number} of pid {view.pid} ({view.link}) is claimed by {names}: "
            "this is a bug in migrate.",
            pid=view.pid,
            fd=view.number,
        )
    return claimants[0] if claimants else None


def pack(kind: Kind, record: Record) -> Dumped:
    """The record of a kind, ready to travel. Equal records pack to equal bytes."""
    return Dumped(kind.name, kind.version, _encoder.encode(record))


def unpack(dumped: Dumped) -> Record:
    """The record that travelled.

    Raises:
        CannotCarry: no such kind here, another version of it, or bytes that are
            not a record of it.
    """
    known = kind(dumped.kind)
    if dumped.version != known.version:
        raise CannotCarry(
            dumped.kind,
            f"The peer sends version {dumped.version} of {dumped.kind}, and version "
            f"{known.version} is known here. Run the same release on both hosts.",
        )
    try:
        return _decoder(known.record).decode(dumped.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CannotCarry(
            dumped.kind, f"The peer's {dumped.kind} makes no sense: {error}."
        ) from error


def warm() -> None:
    """Make what unpack() needs, so that no first time is within the freeze."""
    for module in _modules().values():
        _decoder(module.KIND.record)


_encoder = msgspec.msgpack.Encoder()


@functools.cache
def _decoder(record: type) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(record)
