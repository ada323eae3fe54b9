"""Each parser that reads a peer's bytes, /proc or a file, and what it may raise.

Whatever the bytes, it gives something or raises one of these; anything else is a
defect. ``python -m tests.fuzz NAME`` looks for such bytes, guided by what they reach.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from migrate import image, peers, verdict_token
from migrate.config_directory import NotOurs
from migrate.image import FrozenTree, ImageError, Joined, Layout, Outline
from migrate.journal import Journal
from migrate.kernel import fdinfo, maps, mounts, tasks, timer_list
from migrate.kernel.blocked_syscalls import parse_syscall
from migrate.kernel.proc_text import MalformedText
from migrate.kinds import table
from migrate.kinds.kind import CannotCarry
from migrate.kinds.table import Dumped
from migrate.options import OptionError, parse_peer, parse_size
from migrate.verdict_token import BadToken
from precopy.errors import PageStreamError
from precopy.page_stream import BatchLimits, PageBatch
from transport import messages
from transport.compression import Unpacker
from transport.connection import Connection
from transport.errors import RemoteProtocolError
from transport.frames import FrameDecoder
from transport.states import Role

CORPUS: Final = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Parser:
    """What is fed, and how it refuses."""

    feed: Callable[[bytes], object]
    refuses: tuple[type[Exception], ...] = ()

    def try_with(self, data: bytes) -> bool:
        """Whether it takes ``data``.

        Raises:
            Exception: a defect.
        """
        try:
            self.feed(data)
        except self.refuses:
            return False
        return True


def _frames(data: bytes) -> object:
    return [bytes(frame.body) for frame in FrameDecoder().feed(data)]


def _talk(role: Role) -> Callable[[bytes], object]:
    """All frames of a talk, as one side hears them."""

    def feed(data: bytes) -> object:
        connection = Connection(role)
        return [
            connection.receive(frame.kind, frame.body)
            for frame in FrameDecoder().feed(data)
        ]

    return feed


def _of_image(what: Any, judge: Callable[[Any], object]) -> Parser:  # noqa: ANN401
    def feed(data: bytes) -> object:
        return judge(image.decode(data, what))

    return Parser(feed, (ImageError,))


def _judge_joined(joined: Joined) -> None:
    image.judge_process(joined.process, 1)


def _judge_layout(layout: Layout) -> object:
    try:
        return image.apply_layout(image.judge_vmas(()), layout)
    except (ValueError, OverflowError) as error:  # as destination has it
        raise ImageError(str(error)) from error


def _record(data: bytes) -> object:
    """A record of the kind that the first byte chooses."""
    kinds = sorted(table._modules())
    name = kinds[data[0] % len(kinds)] if data else kinds[0]
    return table.unpack(Dumped(name, table.kind(name).version, data[1:]))


class _Disk:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data

    def write(self, offset: int, data: bytes) -> None:
        raise AssertionError("nobody writes")

    def sync(self) -> None:
        raise AssertionError("nobody writes")


def _fdinfo(data: bytes) -> object:
    info = fdinfo.parse_fdinfo(data)
    found: list[object] = [fdinfo.epoll_targets(info)]
    if "clockid" in info.fields:
        found.append(fdinfo.timerfd_info(info))
    return found


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


_MALFORMED: Final = (MalformedText,)
PARSERS: Final = MappingProxyType(
    {
        "frames": Parser(_frames, (RemoteProtocolError,)),
        "messages": Parser(messages.decode, (RemoteProtocolError,)),
        "heard_by_source": Parser(_talk(Role.SOURCE), (RemoteProtocolError,)),
        "heard_by_destination": Parser(_talk(Role.DESTINATION), (RemoteProtocolError,)),
        "compression": Parser(
            lambda data: Unpacker().unpack(memoryview(data)), (RemoteProtocolError,)
        ),
        "pages": Parser(
            lambda data: PageBatch.decode(memoryview(data), BatchLimits(3)),
            (PageStreamError,),
        ),
        "outline": _of_image(Outline, image.judge),
        "joined": _of_image(Joined, _judge_joined),
        "layout": _of_image(Layout, _judge_layout),
        "frozen": _of_image(FrozenTree, lambda frozen: image.judge_frozen(frozen, 1)),
        "records": Parser(_record, (CannotCarry,)),
        "token": Parser(
            _text(lambda text: verdict_token.verify(text, bytes(16), bytes(16))),
            (BadToken,),
        ),
        "journal": Parser(lambda data: Journal(_Disk(data)).record),
        "peers": Parser(
            _text(lambda text: peers.parse(text, Path("x.toml"))), (NotOurs,)
        ),
        "address": Parser(_text(parse_peer), (OptionError,)),
        "size": Parser(_text(parse_size), (OptionError,)),
        "maps": Parser(maps.parse_maps, _MALFORMED),
        "smaps": Parser(maps.parse_smaps, _MALFORMED),
        "fdinfo": Parser(_fdinfo, _MALFORMED),
        "stat": Parser(tasks.parse_stat, _MALFORMED),
        "status": Parser(tasks.parse_status, _MALFORMED),
        "limits": Parser(tasks.parse_limits, _MALFORMED),
        "timers": Parser(tasks.parse_timers, _MALFORMED),
        "children": Parser(tasks.parse_children, _MALFORMED),
        "timer_list": Parser(timer_list.parse),
        "syscall": Parser(parse_syscall, _MALFORMED),
        "mountinfo": Parser(mounts.parse_mountinfo, _MALFORMED),
        "cgroup": Parser(mounts.parse_cgroup, _MALFORMED),
    }
)


def corpus(name: str) -> Iterator[bytes]:
    """What there is to begin with: the first of each is one that it takes."""
    for file in sorted((CORPUS / name).iterdir()):
        yield file.read_bytes()
