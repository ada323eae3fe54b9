"""Who may bring which processes here, and take which away: default deny.

A process that has arrived *is* what its source wanted it to be: registers and memory
come from there. So to let a peer bring processes of alice is to give it a shell as
alice; nothing that is written here can make that less. The pattern for the executable
is there against mistakes and for order, not against a peer that lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from migrate.options import OptionError, parse_size

ANYBODY: Final = "*"  # but root, who has to be named
ROOT: Final = "root"
RULES_MAX: Final = 100

# useradd(8): what a login name may be; ``*`` is everybody's.
_User: TypeAlias = Annotated[str, Meta(pattern=r"\A(\*|[a-z_][a-z0-9_.-]{0,31}\$?)\Z")]
# A path of cgroups from the root of the hierarchy, none of them "." or "..".
_Slice: TypeAlias = Annotated[
    str, Meta(pattern=r"\A(/(?!\.{1,2}(/|\Z))[^/\x00]+)+\Z", max_length=4096)
]
_Pattern: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of ``allow_in``, ``allow_out`` or ``deny_in``."""

    user: _User
    exe: Annotated[tuple[_Pattern, ...], Meta(max_length=RULES_MAX)] = ("*",)
    memory_max: str | None = None  # of the whole tree, such as 8G
    processes_max: Annotated[int, Meta(ge=1, le=4096)] | None = None  # of the tree
    any_groups: bool = False  # else those that a login here gives
    slice: _Slice | None = None  # the cgroup it lives in here; else that of the agent

    def __post_init__(self) -> None:
        self.memory_bytes_max()

    def memory_bytes_max(self) -> int | None:
        """``memory_max`` in bytes."""
        try:
            return None if self.memory_max is None else parse_size(self.memory_max)
        except OptionError as error:
            raise ValueError(str(error)) from error


Rules: TypeAlias = Annotated[tuple[Rule, ...], Meta(max_length=RULES_MAX)]


@dataclass(frozen=True, slots=True)
class Member:
    """One process, as far as it matters here."""

    uids: frozenset[int]  # real, effective, saved
    user: str | None  # the local name of the one uid; None: there is none
    executable: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, and a sentence that says why."""

    allowed: bool
    why: str
    rules: tuple[Rule, ...] = ()  # that allow it; the first one counts

    def memory_bytes_max(self) -> int | None:
        """What the most generous of them allows; None: any amount."""
        limits = [rule.memory_bytes_max() for rule in self.rules]
        known = [limit for limit in limits if limit is not None]
        return max(known) if known and len(known) == len(limits) else None


def decide(
    members: Sequence[Member],
    memory_bytes: int,
    *,
    allow: Sequence[Rule],
    deny: Sequence[Rule] = (),
) -> Decision:
    """Whether a tree may pass: one rule of ``allow`` for all of it, none of ``deny``
    for any of it.
    """
    if not members:
        return Decision(False, "There is no process in it.")
    for member in members:
        if len(member.uids) != 1:
            listed = ", ".join(map(str, sorted(member.uids)))
            return Decision(False, f"A process of several user ids ({listed}).")
        for rule in deny:
            if _is_of(rule, member) and _runs(rule, member):
                return Decision(False, f"deny_in has a rule for {_named(member)}.")
    mine = [rule for rule in allow if all(_is_of(rule, one) for one in members)]
    short = [_falls_short(rule, members, memory_bytes) for rule in mine]
    rules = tuple(rule for rule, why in zip(mine, short, strict=True) if not why)
    if rules:
        return Decision(True, f"The rule for user {rules[0].user}.", rules)
    return Decision(
        False, short[-1] if short else f"No rule allows {_named(members[0])}."
    )


def _falls_short(rule: Rule, members: Sequence[Member], memory_bytes: int) -> str:
    """Why a rule for this user does not do; empty if it does."""
    for member in members:
        if not _runs(rule, member):
            patterns = ", ".join(rule.exe)
            return f"{member.executable} is none of {patterns}."
    limit = rule.memory_bytes_max()
    if limit is not None and memory_bytes > limit:
        return f"It has {memory_bytes} bytes of memory; {rule.memory_max} are allowed."
    if rule.processes_max is not None and len(members) > rule.processes_max:
        return f"It has {len(members)} processes; {rule.processes_max} are allowed."
    return ""


def _is_of(rule: Rule, member: Member) -> bool:
    # Root is a number, whatever it is called.
    if 0 in member.uids:
        return rule.user == ROOT
    return rule.user in (ANYBODY, member.user)


def _runs(rule: Rule, member: Member) -> bool:
    return any(fnmatchcase(member.executable, pattern) for pattern in rule.exe)


def _named(member: Member) -> str:
    (uid,) = member.uids
    return f"user {member.user or 'without a name'} (uid {uid})"
