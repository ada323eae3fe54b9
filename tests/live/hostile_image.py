"""A source with a valid key that lies about one thing, case after case.

``python -m tests.live.hostile_image --to HOST:PORT PID`` reads names of cases from its
stdin, a line each, makes ``migrate --to HOST:PORT --json PID`` of this project with
that lie, and prints a line of JSON: exit code, what was said, and the report.

The names begin with the line of the list of bad inputs (docs/threat-model.md).
"""

import contextlib
import ctypes
import io
import json
import os
import ssl
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from migrate import cli, embarkation, image, source
from migrate.image import FrozenTree, Outline
from precopy.page_stream import PageBatch
from tests.live.lies import (
    HUGE,
    KERNEL,
    NON_CANONICAL,
    Bytes,
    Lie,
    credentials,
    file,
    file_vma,
    flags,
    head_counts,
    in_a_gap,
    interval,
    late,
    layout_areas,
    layout_with,
    leader,
    limits,
    mapped_file,
    no_layout,
    of_leader,
    of_process,
    of_vdso,
    one_page_at,
    one_vma,
    over_the_vdso,
    payload,
    pid,
    posix,
    registers,
    runs,
    shorter_vectors,
    signals,
    slots,
    state,
    tasks,
    vdso_at,
    vectors,
    with_vmas,
    without_first,
)
from transport import messages as m
from transport.channel import Channel

MIDDLE: Final = 1 << 62
CASES: Final[dict[str, Lie]] = {
    "43 a page less a byte": Lie("bytes for", pages=payload(lambda raw: raw[:-1])),
    "43 a page and a byte": Lie("bytes for", pages=payload(lambda raw: raw + b"x")),
    "50 a page where nothing is": Lie("outside", pages=one_page_at(in_a_gap)),
    "50 a page in the vdso": Lie("outside", pages=one_page_at(of_vdso)),
    "50 a page of the kernel": Lie(
        "runs of a batch", pages=runs(KERNEL, KERNEL + 4096)
    ),
    "50 a page of another process": Lie(
        "not there", pages=one_page_at(in_a_gap, index=1)
    ),
    "51 a run twice": Lie(
        "runs of a batch", pages=runs(1 << 20, (1 << 20) + 4096, 1 << 20)
    ),
    "51 runs that do not ascend": Lie(
        "runs of a batch",
        pages=runs(1 << 21, (1 << 21) + 4096, 1 << 20, (1 << 20) + 4096),
    ),
    "52 more runs than come": Lie("", pages=head_counts(2)),
    "52 fewer runs than come": Lie("", pages=head_counts(-2)),
    "52 half a run": Lie("", pages=head_counts(1)),
    "52 as many runs as a field holds": Lie("boundaries", pages=head_counts(1 << 31)),
    "53 pages after their mapping": Lie("outside", layout=without_first),
    "54 over the vdso": Lie("overlap", outline=with_vmas(over_the_vdso)),
    "54 a vdso in the kernel": Lie("outside user memory", outline=vdso_at(KERNEL)),
    "54 a vdso at page zero": Lie("outside user memory", outline=vdso_at(0)),
    "54 no vdso": Lie(
        "vdso",
        outline=with_vmas(lambda vmas: [v for v in vmas if not v.is_kernel]),
    ),
    "56 huge pages": Lie("is not ours", outline=one_vma(flags=frozenset({"ht"}))),
    "56 a device": Lie("is not ours", outline=one_vma(flags=frozenset({"pf", "io"}))),
    "56 a flag that is none": Lie("flag", outline=one_vma(flags=frozenset({"x" * 99}))),
    "56 a protection that is none": Lie("protection", outline=one_vma(prot=1 << 20)),
    "56 offset 2^63": Lie("", outline=file_vma(offset=1 << 63)),
    "57 rip not canonical": Lie("register", frozen=registers(rip=NON_CANONICAL)),
    "57 rip in the kernel": Lie("register", frozen=registers(rip=KERNEL)),
    "57 cs of the kernel": Lie("register", frozen=registers(cs=0x10)),
    "57 cs of 32 bits": Lie("register", frozen=registers(cs=0x23)),
    "57 ss of the kernel": Lie("register", frozen=registers(ss=0x18)),
    "57 ds of the kernel": Lie("register", frozen=registers(ds=0x18)),
    "57 input and output allowed": Lie("register", frozen=flags(0x3000)),
    "57 a nested task": Lie("register", frozen=flags(0x4000)),
    "57 virtual 8086": Lie("register", frozen=flags(0x2_0000)),
    "57 fs_base in the kernel": Lie("register", frozen=registers(fs_base=KERNEL)),
    "57 gs_base not canonical": Lie(
        "register", frozen=registers(gs_base=NON_CANONICAL)
    ),
    "57 too few registers": Lie("register", frozen=state(registers=bytes(26 * 8))),
    "57 a mask of 65 bits": Lie("", frozen=state(mask=-1)),
    "57 too few vectors": Lie("register", frozen=leader(shorter_vectors)),
    "57 too many vectors": Lie("register", frozen=state(xstate=bytes(1 << 20))),
    "57 mxcsr": Lie("register", frozen=vectors(24, b"\xff" * 4)),
    "57 vectors that are compacted": Lie("register", frozen=vectors(527, b"\x80")),
    "57 vectors of no processor": Lie("", frozen=vectors(512, b"\xff" * 8)),
    "58 a handler for SIGKILL": Lie(
        "signal",
        outline=of_process(
            "signal_actions",
            actions=[{"signal": 9, "handler": 1, "flags": 0, "restorer": 0, "mask": 0}],
        ),
    ),
    "58 a handler of 65 bits": Lie(
        "",
        outline=of_process(
            "signal_actions",
            actions=[
                {"signal": 1, "handler": -1, "flags": 0, "restorer": 0, "mask": 0}
            ],
        ),
    ),
    "58 signal 2^40": Lie(
        "signal",
        outline=of_process(
            "signal_actions",
            actions=[
                {"signal": 1 << 40, "handler": 1, "flags": 0, "restorer": 0, "mask": 0}
            ],
        ),
    ),
    "59 too many signals": Lie(
        "pending", frozen=signals(200_000, (10).to_bytes(128, "little"))
    ),
    "59 a signal of two bytes": Lie("pending", frozen=signals(1, b"\1\0")),
    "59 signal 65": Lie("pending", frozen=signals(1, (65).to_bytes(128, "little"))),
    "60 a timer of less than nothing": Lie("", frozen=interval(-1)),
    "60 a timer of 2^63 for ever": Lie("", frozen=posix(interval_ns=-MIDDLE)),
    "60 a timer with id 2^31": Lie("", frozen=posix(id=1 << 31)),
    "60 a timer of no clock": Lie("clock", frozen=posix(clock=1 << 40)),
    "60 a timer for a thread of others": Lie(
        "", frozen=posix(notify=4, tid=1, signal=9)
    ),
    "61 a break before its heap": Lie(
        "", frozen=layout_areas(heap=(0x60_0000, 0x50_0000))
    ),
    "61 arguments that end before they begin": Lie(
        "", frozen=layout_areas(arguments=(0x7FFF_0000_1010, 0x7FFF_0000_1000))
    ),
    "61 code in the kernel": Lie("", frozen=layout_areas(code=(KERNEL, KERNEL + 4096))),
    "61 an end of 65 bits": Lie("", frozen=layout_areas(stack_start=-1)),
    "61 auxv too long": Lie("auxiliary", frozen=layout_areas(auxv=bytes(4096))),
    "62 fd -1": Lie("table of descriptors", outline=slots(-1)),
    "62 fd 2^31-1": Lie("table of descriptors", outline=slots((1 << 31) - 1)),
    "62 fd 1048576": Lie("table of descriptors", outline=slots(1 << 20)),
    "62 fd twice": Lie("table of descriptors", outline=slots(77, 77)),
    "62 a description without a number": Lie("table of descriptors", outline=slots()),
    "63 position 2^63": Lie("position", outline=file(b"/etc/passwd", position=1 << 63)),
    "63 position -1": Lie("position", outline=file(b"/etc/passwd", position=-1)),
    "63 O_TRUNC": Lie("flags", outline=file(b"/etc/passwd", flags=os.O_TRUNC | 1)),
    "63 O_CREAT": Lie("flags", outline=file(b"/tmp/made", flags=os.O_CREAT | 1)),
    "63 O_PATH": Lie("flags", outline=file(b"/etc/passwd", flags=os.O_PATH)),
    "63 flags of 65 bits": Lie("flags", outline=file(b"/etc/passwd", flags=-1)),
    "64 a relative path": Lie("proper name", outline=file(b"../../etc/shadow")),
    "64 a path of 4097 bytes": Lie("proper name", outline=file(b"/" + b"x" * 4096)),
    "64 a NUL": Lie("proper name", outline=file(b"/etc/passwd\0")),
    "64 (deleted)": Lie("cannot be opened", outline=file(b"/etc/passwd (deleted)")),
    "64 a newline": Lie("/etc/x\\ny", outline=file(b"/etc/x\ny\x1b[2J")),
    "64 a descriptor of ours": Lie("", outline=file(b"/proc/self/fd/3")),
    "64 the memory of the host": Lie("", outline=file(b"/dev/mem")),
    "64 a device that is no file": Lie("not a regular", outline=file(b"/dev/zero")),
    "64 mapped from a relative path": Lie("name", outline=file_vma(name="../x")),
    "64 mapped from a NUL": Lie("name", outline=file_vma(name="/etc/passwd\0x")),
    "64 mapped from nothing that was told": Lie(
        "", outline=file_vma(name="/etc/passwd")
    ),
    "64 mapped from a pipe": Lie("", outline=file_vma(name="/run/pipe")),
    "66 another directory": Lie(
        "cannot be entered", outline=of_process("filesystem", cwd=b"/nowhere", umask=18)
    ),
    "66 a directory with a NUL": Lie(
        "no path", outline=of_process("filesystem", cwd=b"/\0", umask=18)
    ),
    "67 a file of other bytes": Lie(
        "differs here", outline=mapped_file(edges=bytes(16))
    ),
    "68 a file of another size": Lie(
        "differs here", outline=mapped_file(size_bytes=4096)
    ),
    "71 users of others": Lie(
        "has uids",
        outline=credentials(
            uids={"real": 1, "effective": 1, "saved": 1, "filesystem": 1}
        ),
    ),
    "73 a pid beyond pid_max": Lie(
        "", outline=pid((1 << 22) + 1), more=("--pid", "keep")
    ),
    "73 a pid of 2^31": Lie("", outline=pid(1 << 31), more=("--pid", "keep")),
    "73 pid 1": Lie("", outline=pid(1), more=("--pid", "keep")),
    "74 a name of 17 bytes": Lie("name", outline=of_leader("comm", name=b"x" * 17)),
    "74 a name with a NUL": Lie("name", outline=of_leader("comm", name=b"x\0y")),
    "75 too many threads": Lie("too many", outline=tasks(40_000)),
    "76 a soft limit above the hard": Lie("", frozen=limits(2, 1)),
    "76 a limit of 65 bits": Lie("", frozen=limits(-1, -1)),
    "76 fifteen limits": Lie("sixteen", frozen=late("limits", limits=[])),
    "127 a processor that has more": Lie(
        "processor",
        options=lambda options: msgspec.structs.replace(
            options,
            features=(*options.features, m.Feature("cpu.99", "avx avx4096 sse2")),
        ),
    ),
    "127 five-level page tables": Lie(
        "outside user memory", outline=one_vma(start=1 << 52, end=(1 << 52) + 4096)
    ),
    "132 a clock that is a year ahead": Lie(
        "clock",
        options=lambda options: msgspec.structs.replace(
            options,
            monotonic_minus_realtime_ns=options.monotonic_minus_realtime_ns
            - 365 * 86400 * 10**9,
        ),
    ),
    "layout in the kernel": Lie(
        "outside user memory",
        layout=layout_with("added", start=KERNEL, end=KERNEL + 4096),
    ),
    "layout of half a page": Lie("", layout=no_layout(removed=((0x1001, 0x2000),))),
    "layout of less than nothing": Lie("", layout=no_layout(removed=((-4096, 4096),))),
    "layout with an end of 65 bits": Lie(
        "", layout=layout_with("renewed", start=HUGE - 4095, end=HUGE)
    ),
    "layout of a pipe": Lie(
        "", layout=layout_with("renewed", inode=1, name="/run/pipe")
    ),
}


_PLACES: Final = (
    *("source.greeted", "source.offered", "source.rounds.sent", "source.frozen"),
    *("source.state.sent", "source.pages.sent", "source.ready.heard"),
)
CASES.update({f"15 reset at {at}": Lie("", ends=(at, "reset")) for at in _PLACES})
CASES.update(
    {f"14 close_notify at {at}": Lie("", ends=(at, "alert")) for at in _PLACES}
)

# About a process of a user that has no rights.
OF_A_USER: Final = {
    "65 a file of root's": Lie("Permission denied", outline=file(b"/etc/shadow")),
    "65 to write to a file of root's": Lie(
        "Permission denied", outline=file(b"/etc/passwd", flags=os.O_RDWR)
    ),
    "65 mapped from a file of root's": Lie(
        "Permission denied", outline=file_vma(name="/etc/shadow")
    ),
    "66 a directory of root's": Lie(
        "cannot be entered", outline=of_process("filesystem", cwd=b"/root", umask=18)
    ),
    "71 a capability": Lie(
        "capabilities that it may not have",
        outline=credentials(
            capabilities={
                "inheritable": 0,
                "permitted": 1 << 21,
                "effective": 1 << 21,
                "bounding": 1 << 21,
                "ambient": 0,
            }
        ),
    ),
    "71 securebits": Lie("", outline=credentials(securebits=1)),
    "71 the groups of root": Lie("has uids", outline=credentials(groups=(0,))),
}

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Liar:
    """Stands between this project's source and its wire."""

    def __init__(self) -> None:
        self._lie: Lie | None = None
        self._outline: Outline | None = None
        self._channel: Channel
        self._encode = image.encode
        self._batch = PageBatch.encode
        self._options = source.Departure._offered_options
        self._sender = source.Departure._sender
        self._embark = embarkation.embark
        for where, name, ours in (
            (image, "encode", self.encode),
            (PageBatch, "encode", lambda batch: self.pages(batch)),
            (source, "embark", self.embark),
            (source, "reach", self.reach),
            (source.Departure, "_sender", lambda story: self.sender(story)),
            (
                source.Departure,
                "_offered_options",
                lambda story, outline: self.options(story, outline),
            ),
        ):
            setattr(where, name, ours)

    def tell(self, case: str, arguments: Sequence[str]) -> dict[str, Any]:
        """One move with this lie; what came of it."""
        self._lie, self._outline = {**CASES, **OF_A_USER}[case], None
        said, report = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(report):
            code = cli.run([*self._lie.more, *arguments])
        return {"code": code, "said": said.getvalue(), "report": report.getvalue()}

    def encode(self, said: Any) -> bytes:  # noqa: ANN401
        assert self._lie is not None
        if isinstance(said, Outline):
            self._outline = said
            said = (self._lie.outline or _as_it_is)(said)
        elif isinstance(said, FrozenTree):
            said = (self._lie.frozen or _as_it_is)(said)
        return self._encode(said)

    def pages(self, batch: PageBatch) -> Sequence[Bytes]:
        assert self._lie is not None
        assert self._outline is not None
        buffers = self._batch(batch)
        if self._lie.pages is None or not batch.data:
            return buffers
        return self._lie.pages(buffers, self._outline)

    def options(self, story: Any, outline: Outline) -> m.Options:  # noqa: ANN401
        assert self._lie is not None
        return (self._lie.options or _as_it_is)(self._options(story, outline))

    def embark(self, *where: Any) -> Channel:  # noqa: ANN401
        self._channel = self._embark(*where)
        return self._channel

    def reach(self, name: str) -> None:
        """Ends the link where it is to end, and goes on as if nothing were."""
        assert self._lie is not None
        at, how = self._lie.ends
        if at == name:
            end_link(self._channel, how)

    def sender(self, story: Any) -> Any:  # noqa: ANN401
        """Says what has not happened, before the first page."""
        assert self._lie is not None
        assert self._outline is not None
        if self._lie.layout is not None:
            change = self._encode(self._lie.layout(self._outline))
            self._channel.send(m.Layout(0, change))
        return self._sender(story)


def end_link(channel: Channel, how: str) -> None:
    """``reset``: RST; ``alert``: close_notify, on a link that then stays open."""
    link = channel._socket
    assert isinstance(link, ssl.SSLSocket)
    if how == "alert":
        with contextlib.suppress(ssl.SSLWantReadError):
            assert link._sslobj is not None  # type: ignore[attr-defined]
            link._sslobj.shutdown()  # type: ignore[attr-defined]
        return
    # connect(2) to AF_UNSPEC dissolves the association: a stream resets its peer.
    nowhere = bytes(16)
    assert _libc.connect(link.fileno(), nowhere, len(nowhere)) == 0


def _as_it_is(said: Any) -> Any:  # noqa: ANN401
    return said


def main(arguments: Sequence[str]) -> int:
    liar = Liar()
    for line in sys.stdin:
        print(json.dumps(liar.tell(line.strip(), arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
