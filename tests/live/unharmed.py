"""Whether a process is as it was: everything of it that can be seen from outside.

Two looks at a process that did nothing of note between them show the same. What a
running program changes by itself is left out (counters, times, what is in transit);
all else is compared as /proc shows it, word for word, by no code of ours.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Final

# proc_pid_status(5): what says nothing about who the process is.
_RESTLESS: Final = re.compile(
    r"(State|FDSize|Vm\w+|Rss\w+|HugetlbPages|SigQ|SigPnd|ShdPnd|x86_Thread_features"
    r"|(non)?voluntary_ctxt_switches):"
)
# proc_pid_fdinfo(5): what goes on by itself in a timer, a counter or a pipe.
_RESTLESS_FD: Final = re.compile(r"(ticks|it_value|eventfd-count|sigmask):")
_SAME_TEXT: Final = (
    *("auxv", "cgroup", "cmdline", "comm", "coredump_filter", "environ", "limits"),
    *("oom_score_adj", "personality", "timers", "timerslack_ns", "uid_map"),
)
_LOOKS_MAX: Final = 5
_SAME_LINK: Final = ("cwd", "exe", "root")
# proc_pid_stat(5), counted from the state, which is the third.
_SAME_STAT: Final = {
    "parent": 4,
    "process group": 5,
    "session": 6,
    "terminal": 7,
    "nice": 19,
    "start": 22,
    "stack": 28,
    "exit signal": 38,
    "realtime priority": 40,
    "policy": 41,
    "brk": 47,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One look at a process: what there is to see, by where it is seen."""

    pid: int
    seen: dict[str, str]

    @classmethod
    def of(cls, pid: int) -> "Condition":
        """Look at ``pid``, as we number it; it does not notice.

        Twice: a thread that is in a handler just now, out of sigsuspend(2), say, has
        another mask for that moment.
        """
        first, second = cls._look(pid), cls._look(pid)
        for _ in range(_LOOKS_MAX):
            if first == second:
                break
            first, second = second, cls._look(pid)
        return second

    @classmethod
    def _look(cls, pid: int) -> "Condition":
        home = Path("/proc") / str(pid)
        return cls(pid, {where: what for part in _PARTS for where, what in part(home)})

    def untracked(self) -> "Condition":
        """How it will look when nobody follows its writes any more (userfaultfd)."""
        seen = {
            where: what.replace(" uw", "") if where.startswith("flags ") else what
            for where, what in self.seen.items()
        }
        return Condition(self.pid, seen)

    def assert_same_now(self) -> None:
        """It is as it was, and it runs: nobody traces it, nothing holds it."""
        now = Condition._look(self.pid)
        for _ in range(_LOOKS_MAX):
            if now == self:
                return
            now = Condition._look(self.pid)
        changes = [
            f"{where}: {self.seen.get(where)!r} → {now.seen.get(where)!r}"
            for where in sorted(self.seen | now.seen)
            if self.seen.get(where) != now.seen.get(where)
        ]
        assert not changes, "it is not as it was:\n  " + "\n  ".join(changes)


def _texts(home: Path) -> Iterator[tuple[str, str]]:
    for name in _SAME_TEXT:
        yield name, (home / name).read_bytes().decode(errors="backslashreplace")
    for name in _SAME_LINK:
        yield name, os.readlink(home / name)
    for link in (home / "ns").iterdir():
        yield f"ns {link.name}", os.readlink(link)


def _tasks(home: Path) -> Iterator[tuple[str, str]]:
    for task in (home / "task").iterdir():
        who = f"thread {task.name}"
        status = (task / "status").read_text()
        for line in status.splitlines():
            if not _RESTLESS.match(line):
                name, _, value = line.partition(":\t")
                yield f"{who} {name}", value
        stat = _stat(task)
        # A stop shows as t or T; a sleep or a run is its own affair.
        yield f"{who} stopped", str(stat[0] in "tT")
        for name, field in _SAME_STAT.items():
            yield f"{who} {name}", stat[field - 3]
        yield f"{who} children", (task / "children").read_text()
        masks = _masks(status)
        yield f"{who} SigPnd", f"{masks['SigPnd'] & masks['SigBlk']:x}"


def _pending(home: Path) -> Iterator[tuple[str, str]]:
    """What waits for the process because all its threads block it.

    What one of them would take is in transit, and is another at the next look.
    """
    tasks = [
        _masks((task / "status").read_text()) for task in (home / "task").iterdir()
    ]
    blocked = reduce(and_, (masks["SigBlk"] for masks in tasks))
    yield "ShdPnd", f"{tasks[0]['ShdPnd'] & blocked:x}"


def _stat(task: Path) -> list[str]:
    return (task / "stat").read_text().rpartition(")")[2].split()


def _masks(status: str) -> dict[str, int]:
    found = re.findall(r"^(Sig\w+|ShdPnd):\t([0-9a-f]{16})$", status, re.MULTILINE)
    return {name: int(mask, 16) for name, mask in found}


def _mappings(home: Path) -> Iterator[tuple[str, str]]:
    place = ""
    for line in (home / "smaps").read_text(errors="backslashreplace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            place, _, what = line.partition(" ")
            yield f"mapping {place}", what
        elif line.startswith("VmFlags:"):
            yield f"flags {place}", line.removeprefix("VmFlags:").strip()


def _descriptors(home: Path) -> Iterator[tuple[str, str]]:
    for link in (home / "fd").iterdir():
        number = f"fd {link.name}"
        yield number, os.readlink(link)
        information = (home / "fdinfo" / link.name).read_text()
        lines = [x for x in information.splitlines() if not _RESTLESS_FD.match(x)]
        yield f"{number} information", "\n".join(lines)


def _freezer(home: Path) -> Iterator[tuple[str, str]]:
    """Its cgroup, which has to be thawed, and what is below that of ours."""
    for line in (home / "cgroup").read_text().splitlines():
        if line.startswith("0::"):
            mounts = Path("/proc/self/mountinfo").read_text().splitlines()
            (top,) = {x.split()[4] for x in mounts if " - cgroup2 " in x}
            folder = Path(top + line.removeprefix("0::"))
            for name in ("cgroup.freeze", "cgroup.events"):
                yield name, (folder / name).read_text()
            yield "leaves", str(sorted(path.name for path in folder.glob("migrate-*/")))


_PARTS: Final = (_texts, _tasks, _pending, _mappings, _descriptors, _freezer)
