"""A peer with a valid key and bad intentions. Runs inside a host of a bed.

``python -m tests.live.hostile_peer wire HOST:PORT`` says everything on the wire that no
source would say, each on a connection of its own, and prints a JSON object: case → what
the agent did. ``… dawdle HOST:PORT`` begins to speak, each time a
little more, and then waits. ``… image CASE --to HOST:PORT PID`` is ``migrate --to`` of
this project, but for one lie in what it says about the process.
"""

import json
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import msgspec

from migrate import cli, doorway, image
from migrate.image import Outline, Process
from migrate.options import Peer, parse_peer
from transport import messages as m
from transport.frames import FrameDecoder, FrameKind
from transport.tls import Secured

ANSWER_S: Final = 20.0
_HEADER: Final = struct.Struct(">IB")
TRANSACTION: Final = b"t" * 16


def frame(body: bytes, kind: int = 1, length: int | None = None) -> bytes:
    """A frame that may lie about its length."""
    return _HEADER.pack(len(body) if length is None else length, kind) + body


def packed(*fields: Any) -> bytes:  # noqa: ANN401  whatever msgpack has
    return msgspec.msgpack.encode(fields)


HELLO: Final = frame(packed(2, m.VERSION_MAX, TRANSACTION))


def wire_cases() -> Iterator[tuple[str, bytes]]:
    """What is said after the agent's Welcome; the names begin with the line of the
    list of bad inputs.
    """
    yield "1 length 0", frame(b"", length=0)
    yield "2 length 2^32-1", frame(b"", length=(1 << 32) - 1)
    yield "3 one above the limit", frame(b"", length=(1 << 20) + 1)
    for cut in range(1, len(HELLO)):
        yield f"4 hello cut at {cut}", HELLO[:cut]
    yield "7 unknown tag", frame(packed(99))
    yield "7 tag zero", frame(packed(0))
    yield "7 unknown kind of frame", frame(packed(18, 1), kind=9)
    for message in ("Offer", "Go", "Fin", "RoundEnd", "State", "End", "Layout"):
        tag = getattr(m, message).__struct_config__.tag
        yield f"8 {message} before Hello", frame(packed(tag))
    yield "8 pages before Hello", frame(b"x", kind=3)
    yield "9 Hello twice", HELLO + HELLO
    yield "10 Welcome by the source", frame(packed(1, 2, 2, "x"))
    yield "10 Accepted by the source", frame(packed(13, TRANSACTION, b"", False, 0))
    yield "11 http", b"GET / HTTP/1.1\r\n\r\n"
    yield "12 pipelined and too much", HELLO + frame(packed(18, 1)) * 50
    yield "21 truncated object", frame(b"\x93\x02")
    yield "22 trailing bytes", frame(packed(2, m.VERSION_MAX, TRANSACTION) + b"\xc0")
    yield "23 array of 2^31", frame(b"\xdd\x7f\xff\xff\xff")
    yield "23 binary of 2^32-1", frame(b"\x93\x02\x02\xc6\xff\xff\xff\xff")
    yield "24 depth 100000", frame(b"\x91" * 100_000)
    yield "26 bool for int", frame(packed(2, True, TRANSACTION))
    yield "27 float for int", frame(packed(2, 2.0, TRANSACTION))
    yield "27 NaN", frame(packed(2, float("nan"), TRANSACTION))
    yield "28 negative", frame(packed(2, -1, TRANSACTION))
    yield "28 2^64-1", frame(packed(2, (1 << 64) - 1, TRANSACTION))
    yield "29 no UTF-8", frame(b"\x92\x0f\x91\x94\xa1\xff\xc0\xc0\xa0")
    yield "30 NUL in a string", frame(packed(15, [("", None, None, "a\0b")]))
    yield "31 ext type", frame(b"\x93\x02\x02\xd8\x01" + TRANSACTION)
    yield "31 timestamp", frame(b"\x93\x02\x02\xd6\xff\x00\x00\x00\x00")
    yield "32 text for bytes", frame(packed(2, m.VERSION_MAX, "t" * 16))
    yield "33 a field missing", frame(packed(2, m.VERSION_MAX))
    yield "33 a field too many", frame(packed(2, m.VERSION_MAX, TRANSACTION, 0))
    yield "34 a map", frame(msgspec.msgpack.encode({2: m.VERSION_MAX}))
    yield "92 a version that was not offered", frame(packed(2, 1, TRANSACTION))
    yield "92 a version to come", frame(packed(2, 3000, TRANSACTION))
    outline = b"\xdd\xff\xff\xff\xff"
    yield "23 outline of 2^32 processes", HELLO + frame(m.encode(offer(outline)))
    yield "24 outline of depth 100000", HELLO + frame(m.encode(offer(b"\x91" * 10**5)))
    yield "21 empty outline", HELLO + frame(m.encode(offer(b"")))
    yield "44 no process", HELLO + frame(m.encode(offer(packed([]))))
    yield "127 another machine", HELLO + frame(m.encode(offer(b"", machine="riscv64")))
    yield "127 other pages", HELLO + frame(m.encode(offer(b"", page_bytes=65536)))
    yield "35 half a message in parts", HELLO + frame(bytes(1 << 20), kind=2)
    yield "91 a Go from another talk", HELLO + frame(m.encode(m.Go()))


def offer(outline: bytes, **changed: Any) -> m.Offer:  # noqa: ANN401
    options: dict[str, Any] = {
        "codecs": (m.Codec.NONE,),
        "streams": 1,
        "tracker": "everything",
        "pid_policy": m.PidPolicy.AUTO,
        "monotonic_minus_realtime_ns": 0,
        "boottime_minus_realtime_ns": 0,
        "page_bytes": 4096,
        "machine": os.uname().machine,
        "features": (),
    }
    return m.Offer(outline, m.Options(**{**options, **changed}))


def wire(where: Peer) -> dict[str, str]:
    """What the agent did, case by case."""
    return {name: said(where, raw) for name, raw in wire_cases()}


def said(where: Peer, raw: bytes) -> str:
    """How the agent ended a talk in which ``raw`` was said, and nothing after."""
    sock = socket.create_connection(where, ANSWER_S)
    link, _ = doorway.leave(sock, where)
    with link:
        link.socket.settimeout(ANSWER_S)
        heard = answers(link)
        next(heard)  # Welcome
        rest = memoryview(raw)
        try:
            while rest:
                rest = rest[link.sendmsg([rest]) :]
            # The end of what we say, which is all that a cut frame waits for.
            socket.socket.shutdown(link.socket, socket.SHUT_WR)
            return " ".join([*heard, "closed"])
        except TimeoutError:
            return "hung"
        except OSError:
            return "closed"


def dawdle(where: Peer) -> dict[str, str]:
    """How the agent ended talks that do not go on, and whose link is not ended."""
    cuts = (0, 1, 4, 5, 6, len(HELLO) - 1, len(HELLO))
    outcomes = {f"5 silence after {cut}": until_closed(where, cut) for cut in cuts}
    return {**outcomes, "6 a byte and a byte": until_closed(where, len(HELLO), 0.1)}


def until_closed(where: Peer, cut: int, pause_s: float = 0.0) -> str:
    """What the agent says to the first ``cut`` bytes of a Hello, and then its end."""
    link, _ = doorway.leave(socket.create_connection(where, ANSWER_S), where)
    with link:
        link.socket.settimeout(ANSWER_S)
        heard = answers(link)
        next(heard)  # Welcome
        pieces = [HELLO[:cut]] if not pause_s else [bytes([b]) for b in HELLO]
        try:
            for piece in filter(None, pieces):
                link.sendmsg([memoryview(piece)])
                if select.select([link.socket], [], [], pause_s)[0]:
                    break
            return " ".join([*heard, "closed"])
        except TimeoutError:
            return "hung"
        except OSError:
            return "closed"


def answers(link: Secured) -> Iterator[str]:
    """The names of the agent's messages, until it closes."""
    decoder = FrameDecoder()
    while True:
        try:
            count = link.recv_into(decoder.room())
        except (ConnectionResetError, BrokenPipeError):
            return
        if not count:
            return
        found = decoder.filled(count)
        if found is not None and found.kind is FrameKind.MESSAGE:
            yield type(m.decode(found.body)).__name__


def changed_process(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    def change(outline: Outline) -> Outline:
        return Outline((replace(outline.processes[0], **fields),))

    return change


def changed_vma(**fields: Any) -> Callable[[Outline], Outline]:  # noqa: ANN401
    """The first mapping, changed."""

    def change(outline: Outline) -> Outline:
        process: Process = outline.processes[0]
        first, *rest = process.vmas
        vmas = (_replaced(first, fields), *rest)
        return Outline((replace(process, vmas=vmas),))

    return change


def _replaced(record: Any, fields: dict[str, Any]) -> Any:  # noqa: ANN401
    if isinstance(record, msgspec.Struct):
        return msgspec.structs.replace(record, **fields)
    return replace(record, **fields)


def twice(outline: Outline) -> Outline:
    process = outline.processes[0]
    return Outline((replace(process, vmas=(process.vmas[0], *process.vmas)),))


def many_vmas(outline: Outline) -> Outline:
    process = outline.processes[0]
    vma = process.vmas[0]
    start = 0x10_0000
    many = tuple(
        _replaced(vma, {"start": start + n * 8192, "end": start + n * 8192 + 4096})
        for n in range(65_531)
    )
    return Outline((replace(process, vmas=many),))


IMAGE_CASES: Final[dict[str, Callable[[Outline], Outline]]] = {
    "44 overlapping mappings": twice,
    "45 end before start": changed_vma(end=0x1000),
    "45 unaligned": changed_vma(start=0x40_0001),
    "46 kernel addresses": changed_vma(
        start=0xFFFF_8000_0000_0000, end=0xFFFF_8000_0000_1000
    ),
    "47 page zero": changed_vma(start=0, end=4096),
    "48 wraps around": changed_vma(start=0x40_0000, end=(1 << 64) - 4096),
    "49 65531 mappings": many_vmas,
    "64 executable through ..": changed_process(executable=b"../../bin/true"),
    "64 executable with NUL": changed_process(executable=b"/bin/true\0x"),
    "66 executable missing": changed_process(executable=b"/nonexistent/program"),
    "70 another user": changed_process(uids=(1, 1, 1)),
    "70 uids not uniform": changed_process(uids=(65534, 0, 65534)),
    "70 uid 2^32-1": changed_process(uids=((1 << 32) - 1,) * 3),
    "70 uid -1": changed_process(uids=(-1, -1, -1)),
    "70 uid 2^32, which is 0": changed_process(uids=(1 << 32,) * 3),
    "70 gid 2^32-1": changed_process(gids=((1 << 32) - 1,) * 3),
    "70 group 2^32, which is 0": changed_process(groups=(1 << 32,)),
    "70 supplementary disk": changed_process(groups=(6,)),
    "70 70000 groups": changed_process(groups=tuple(range(70_000))),
    "73 pid 0": changed_process(pid=0),
    "73 pid negative": changed_process(pid=-5),
    "75 tid twice": lambda outline: Outline(
        (
            replace(
                outline.processes[0],
                tasks=outline.processes[0].tasks * 2,
            ),
        )
    ),
    "75 no thread": changed_process(tasks=()),
}


def lie(case: str, arguments: list[str]) -> int:
    """``migrate ARGUMENTS`` with one lie in the outline."""
    truth = image.encode

    def encode(record: Any) -> bytes:  # noqa: ANN401  any record of an image
        if isinstance(record, Outline):
            record = IMAGE_CASES[case](record)
        return truth(record)

    image.encode = encode
    return cli.run(arguments)


def main(arguments: list[str]) -> int:
    if arguments[0] == "wire":
        print(json.dumps(wire(parse_peer(arguments[1]))))
        return 0
    if arguments[0] == "dawdle":
        print(json.dumps(dawdle(parse_peer(arguments[1]))))
        return 0
    return lie(arguments[1], arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
