"""/proc/PID/stat, status, limits and timers: what the kernel tells about a task.

described   proc_pid_stat(5), proc_pid_status(5), proc_pid_limits(5),
            proc_pid_timers(5)

The name of a task is any 15 bytes that its owner likes. stat prints them raw between
parentheses, so it is cut at the *last* closing one; status escapes newline and
backslash (fs/proc/array.c, proc_task_name()).
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from migrate.kernel.proc_text import MalformedText, text
from precopy.ids import Pid, Tid

RLIMIT_INFINITY: Final = (1 << 64) - 1  # RLIM64_INFINITY, prlimit64(2)

_LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "Max cpu time": resource.RLIMIT_CPU,
        "Max file size": resource.RLIMIT_FSIZE,
        "Max data size": resource.RLIMIT_DATA,
        "Max stack size": resource.RLIMIT_STACK,
        "Max core file size": resource.RLIMIT_CORE,
        "Max resident set": resource.RLIMIT_RSS,
        "Max processes": resource.RLIMIT_NPROC,
        "Max open files": resource.RLIMIT_NOFILE,
        "Max locked memory": resource.RLIMIT_MEMLOCK,
        "Max address space": resource.RLIMIT_AS,
        "Max file locks": 10,  # RLIMIT_LOCKS: Python has no name for it
        "Max pending signals": resource.RLIMIT_SIGPENDING,
        "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
        "Max nice priority": resource.RLIMIT_NICE,
        "Max realtime priority": resource.RLIMIT_RTPRIO,
        "Max realtime timeout": resource.RLIMIT_RTTIME,
    }
)


@dataclass(frozen=True, slots=True)
class Stat:
    """What preflight and the kinds need of /proc/PID/stat."""

    pid: Pid
    name: str
    state: str  # one letter: R S D T t X Z P I
    parent: Pid
    process_group: int
    session: int
    terminal: int  # device number of the controlling terminal, 0 = none
    terminal_group: int  # -1 = none
    flags: int  # PF_*: include/linux/sched.h
    nice: int
    threads: int
    start_time_ticks: int  # since boot, in sysconf(SC_CLK_TCK)
    code: tuple[int, int]  # the addresses are 0 for those who may not ptrace it
    stack_start: int
    exit_signal: int
    realtime_priority: int
    policy: int
    data: tuple[int, int]
    brk_start: int
    arguments: tuple[int, int]
    environment: tuple[int, int]
    exit_status: int  # of a zombie, as wait(2) gives it


@dataclass(frozen=True, slots=True)
class Ids:
    """The four user or group ids that a task has."""

    real: int
    effective: int
    saved: int
    filesystem: int

    @property
    def uniform(self) -> bool:
        """Whether all four are the same."""
        return self.real == self.effective == self.saved == self.filesystem


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The five sets of capabilities(7), as bit masks."""

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int


@dataclass(frozen=True, slots=True)
class SignalSets:
    """Masks of /proc/PID/status: bit n-1 stands for signal n."""

    pending: int  # of this thread
    shared_pending: int  # of the process
    blocked: int
    ignored: int
    caught: int


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/status, or that of one thread, says."""

    name: str
    umask: int | None  # a zombie has none
    state: str
    tgid: Pid
    pid: Tid
    parent: Pid
    tracer: Pid  # 0 = nobody
    uids: Ids
    gids: Ids
    groups: tuple[int, ...]
    pids_in_namespaces: tuple[int, ...]  # NSpid: ours first, the innermost last
    kernel_thread: bool | None  # None where the kernel does not say (before 6.8)
    threads: int
    signals: SignalSets
    capabilities: Capabilities
    no_new_privs: bool
    seccomp: int  # 0 none, 1 strict, 2 filter
    core_dumping: bool
    allowed_cpus: str  # Cpus_allowed_list


@dataclass(frozen=True, slots=True)
class Limit:
    """A resource limit; RLIMIT_INFINITY = none."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class PosixTimer:
    """A timer of timer_create(2), as /proc/PID/timers shows it."""

    id: int
    signal: int
    value: int  # sigev_value
    notify: str  # "signal", "none", "thread"
    thread: bool  # notifies one thread (SIGEV_THREAD_ID), not the process
    target: int  # that tid, or the pid; as the reader's pid namespace numbers it
    clock: int


def parse_stat(content: bytes) -> Stat:
    """What the text of /proc/PID/stat says.

    Raises:
        MalformedText: it is cut short, or not a stat.
    """
    opening, closing = content.find(b" ("), content.rfind(b") ")
    try:
        if not 0 < opening < closing:
            raise ValueError(content)
        state, *words = content[closing + 2 :].decode("ascii").split()
        number = [0, 0, 0, *map(int, words)]  # numbered as in proc_pid_stat(5), less 1
        return Stat(
            pid=Pid(int(content[:opening])),
            name=text(content[opening + 2 : closing]),
            state=state,
            parent=Pid(number[3]),
            process_group=number[4],
            session=number[5],
            terminal=number[6],
            terminal_group=number[7],
            flags=number[8],
            nice=number[18],
            threads=number[19],
            start_time_ticks=number[21],
            code=(number[25], number[26]),
            stack_start=number[27],
            exit_signal=number[37],
            realtime_priority=number[39],
            policy=number[40],
            data=(number[44], number[45]),
            brk_start=number[46],
            arguments=(number[47], number[48]),
            environment=(number[49], number[50]),
            exit_status=number[51],
        )
    except (IndexError, ValueError):
        raise MalformedText("stat", content) from None


def parse_status(content: bytes) -> Status:
    """What the text of /proc/PID/status says.

    Raises:
        MalformedText: a line is missing that every task has, or cannot be read.
    """
    lines = [line.partition(b":\t") for line in content.split(b"\n")]
    raw = {name: value for name, _, value in lines}

    def mask(name: bytes) -> int:
        return int(raw[name], 16)

    try:
        return Status(
            name=text(_unescape_name(raw[b"Name"])),
            umask=int(raw[b"Umask"], 8) if b"Umask" in raw else None,
            state=raw[b"State"][:1].decode("ascii"),
            tgid=Pid(int(raw[b"Tgid"])),
            pid=Tid(int(raw[b"Pid"])),
            parent=Pid(int(raw[b"PPid"])),
            tracer=Pid(int(raw[b"TracerPid"])),
            uids=_ids(raw[b"Uid"]),
            gids=_ids(raw[b"Gid"]),
            groups=tuple(map(int, raw[b"Groups"].split())),
            pids_in_namespaces=tuple(map(int, raw.get(b"NSpid", b"").split())),
            kernel_thread=raw[b"Kthread"] == b"1" if b"Kthread" in raw else None,
            threads=int(raw[b"Threads"]),
            signals=SignalSets(
                mask(b"SigPnd"),
                mask(b"ShdPnd"),
                mask(b"SigBlk"),
                mask(b"SigIgn"),
                mask(b"SigCgt"),
            ),
            capabilities=Capabilities(
                mask(b"CapInh"),
                mask(b"CapPrm"),
                mask(b"CapEff"),
                mask(b"CapBnd"),
                mask(b"CapAmb"),
            ),
            no_new_privs=raw[b"NoNewPrivs"] == b"1",
            seccomp=int(raw.get(b"Seccomp", b"0")),
            core_dumping=raw.get(b"CoreDumping") == b"1",
            allowed_cpus=text(raw.get(b"Cpus_allowed_list", b"")),
        )
    except (KeyError, ValueError):
        raise MalformedText("status", content) from None


def parse_limits(content: bytes) -> dict[int, Limit]:
    """What the text of /proc/PID/limits says, by RLIMIT_ number.

    Raises:
        MalformedText: one of the sixteen is missing or cannot be read.
    """
    limits = {}
    for line in text(content).split("\n")[1:]:
        number = _LIMITS.get(line[:26].rstrip())
        words = line[26:].split()
        if number is not None and len(words) >= 2:
            limits[number] = Limit(_limit(words[0], line), _limit(words[1], line))
    if len(limits) != len(_LIMITS):
        raise MalformedText("limits", content)
    return limits


def parse_timers(content: bytes) -> tuple[PosixTimer, ...]:
    """What the text of /proc/PID/timers says.

    Raises:
        MalformedText: a timer is cut short or cannot be read.
    """
    lines = text(content).split("\n")
    if lines.pop() or len(lines) % 4:
        raise MalformedText("timers", content)
    timers = []
    for at in range(0, len(lines), 4):
        values = [line.partition(": ") for line in lines[at : at + 4]]
        if [name for name, _, _ in values] != ["ID", "signal", "notify", "ClockID"]:
            raise MalformedText("timers", content)
        number, signal, notify, clock = (value for _, _, value in values)
        try:
            signal_number, _, value = signal.partition("/")
            how, _, whom = notify.partition("/")
            kind, _, target = whom.partition(".")
            timers.append(
                PosixTimer(
                    int(number),
                    int(signal_number),
                    int(value, 16),
                    how,
                    kind == "tid",
                    int(target),
                    int(clock),
                )
            )
        except ValueError:
            raise MalformedText("timers", content) from None
    return tuple(timers)


def parse_children(content: bytes) -> tuple[Pid, ...]:
    """What the text of /proc/PID/task/TID/children says.

    Raises:
        MalformedText: something in it is no number.
    """
    try:
        return tuple(Pid(int(word)) for word in content.split())
    except ValueError:
        raise MalformedText("children", content) from None


def _ids(value: bytes) -> Ids:
    real, effective, saved, filesystem = map(int, value.split())
    return Ids(real, effective, saved, filesystem)


def _limit(word: str, line: str) -> int:
    if word == "unlimited":
        return RLIMIT_INFINITY
    try:
        return int(word)
    except ValueError:
        raw = line.encode("utf-8", "surrogateescape")
        raise MalformedText("limits", raw) from None


def _unescape_name(name: bytes) -> bytes:
    # string_escape_str(…, ESCAPE_SPACE | ESCAPE_SPECIAL, "\n\\"): these two only.
    return (
        name.replace(rb"\\", b"\0").replace(rb"\n", b"\n").replace(b"\0", b"\\")
        if b"\\" in name
        else name
    )
