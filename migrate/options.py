"""What may be asked of a move, and how it is written on a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple


class OptionError(ValueError):
    """A value that cannot be understood; the message says what would be."""


class OnStall(Enum):
    """What to do when the process writes faster than the link carries.

    Nothing can slow a process down yet: THROTTLE does what STOP_AND_COPY does.
    """

    STOP_AND_COPY = "stop-and-copy"
    THROTTLE = "throttle"
    ABORT = "abort"


class TrackerChoice(Enum):
    """Which dirty tracker; AUTO takes the best that the kernel has."""

    AUTO = "auto"
    UFFD_WP = "uffd-wp"
    SOFT_DIRTY = "soft-dirty"
    EVERYTHING = "everything"


class PidPolicy(Enum):
    """What to do about the pid at the destination."""

    AUTO = "auto"  # keep it where it is free, else a new pid namespace
    KEEP = "keep"  # the same pid, or be refused
    ANY = "any"  # whatever is free
    NEW_NAMESPACE = "new-namespace"  # the same pid in a pid namespace of its own


class ProgressStyle(Enum):
    """How progress is shown."""

    AUTO = "auto"  # a bar where stderr is a terminal
    NONE = "none"
    JSONL = "jsonl"


class Codec(Enum):
    """How page data is packed."""

    AUTO = "auto"
    NONE = "none"
    ZSTD = "zstd"


class Compress(NamedTuple):
    """How page data is packed, and how hard to try."""

    codec: Codec
    level: int | None = None  # zstd only; None: zstd's own default


COMPRESS_AUTO: Final = Compress(Codec.AUTO)


class Peer(NamedTuple):
    """Where an agent listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOptions:
    """One move's options; the defaults suit a first use."""

    downtime_limit_s: float = 0.050  # stop-and-copy when the estimate is under it
    rounds_max: int = 30
    timeout_s: float | None = None  # from the connection to the hand-over
    on_stall: OnStall = OnStall.THROTTLE
    bandwidth: int | None = None  # bytes per second; None: whatever the link has
    streams: int | None = None  # None: as many as are useful
    compress: Compress = COMPRESS_AUTO
    tracker: TrackerChoice = TrackerChoice.AUTO
    pid_policy: PidPolicy = PidPolicy.AUTO
    supervised: bool = False  # it may go though somebody would start another one
    dry_run: bool = False


# As dd(1) has it: K, M, G are powers of 1024, and so are KiB, MiB, GiB; with a
# B alone they are powers of 1000, which is how links and disks are sold.
_MULTIPLES: Final = {
    "": 1,
    "B": 1,
    **{
        spelling: base**power
        for power, letter in enumerate("KMGTP", start=1)
        for spelling, base in (
            (letter, 1024),
            (f"{letter}IB", 1024),
            (f"{letter}B", 1000),
        )
    },
}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", re.ASCII)
_BITS: Final = {"BIT": 1, "KBIT": 10**3, "MBIT": 10**6, "GBIT": 10**9, "TBIT": 10**12}
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_ADDRESS_IN_BRACKETS: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?", re.ASCII)
_DECIMAL: Final = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)
_SECONDS_MAX: Final = 10.0**9
_PORT: Final = re.compile(r"\d{1,5}", re.ASCII)
_ZSTD_LEVELS: Final = range(1, 20)  # above 19 zstd wants more memory at both ends


def parse_size(text: str) -> int:
    """Bytes, from ``4096``, ``8G`` (1024³) or ``8GB`` (1000³)."""
    return _whole(text, _MULTIPLES, "a size such as 4096, 64M, 8G or 200MB")


def parse_rate(text: str) -> int:
    """Bytes per second, from ``200MB/s``, ``50M`` or ``1Gbit/s``."""
    return _whole(
        text.removesuffix("/s"),
        {**_MULTIPLES, **_BITS},
        "a rate such as 200MB/s, 50M or 1Gbit/s",
        shown=text,
    )


def _whole(
    text: str, multiples: dict[str, int], wanted: str, *, shown: str | None = None
) -> int:
    shown = text if shown is None else shown
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in multiples:
        raise OptionError(f"{shown!r} is not {wanted}.")
    unit = match[2].upper()
    value = float(match[1]) * multiples[unit] if "." in match[1] else None
    whole = int(match[1]) * multiples[unit] if value is None else int(value)
    if unit in _BITS:
        whole //= 8
    if not 0 < whole < 2**63:
        raise OptionError(f"{shown!r} is out of range; give {wanted}.")
    return whole


def parse_seconds(text: str) -> float:
    """Seconds, from ``60`` or ``0.5``."""
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) <= _SECONDS_MAX:
        raise OptionError(f"{text!r} is not a number of seconds such as 60 or 0.5.")
    return float(text)


def parse_milliseconds(text: str) -> float:
    """Seconds, from milliseconds: 0.05 from ``50``."""
    if not _DECIMAL.fullmatch(text) or not 0 < float(text) <= 1000 * _SECONDS_MAX:
        raise OptionError(f"{text!r} is not a number of milliseconds such as 50.")
    return float(text) / 1000


def parse_peer(text: str, *, any_port: bool = False) -> Peer:
    """Host and port, from ``HOST:PORT`` or ``[IPv6]:PORT``.

    With ``any_port`` also port 0, which to a listener means: one that is free.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise OptionError(f"{text!r} has no port; write HOST:PORT, e.g. {text}:7077.")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not _ADDRESS_IN_BRACKETS.fullmatch(host):
            raise OptionError(f"{text!r}: there is no IPv6 address in the brackets.")
    elif ":" in host:
        raise OptionError(
            f"{text!r} has more than one colon; "
            "put an IPv6 address into brackets: [ADDRESS]:PORT."
        )
    elif not host:
        raise OptionError(f"{text!r} has no host; write HOST:PORT.")
    elif not _HOST.fullmatch(host):
        raise OptionError(f"{host!r} is neither a host name nor an address.")
    least = 0 if any_port else 1
    if not (_PORT.fullmatch(port) and least <= int(port) < 65536):
        raise OptionError(
            f"{port!r} is not a port; give a number from {least} to 65535."
        )
    return Peer(host, int(port))


def parse_streams(text: str) -> int | None:
    """How many connections carry pages; None for ``auto``."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 16):
        raise OptionError(f"{text!r} is neither auto nor a number from 1 to 16.")
    return int(text)


def parse_compress(text: str) -> Compress:
    """How to pack pages, from ``auto``, ``none``, ``zstd`` or ``zstd:LEVEL``."""
    name, colon, level = text.partition(":")
    try:
        codec = Codec(name)
    except ValueError:
        raise OptionError(
            f"{text!r} is none of auto, none, zstd and zstd:LEVEL."
        ) from None
    if not colon:
        return Compress(codec)
    if codec is not Codec.ZSTD:
        raise OptionError(f"{text!r}: only zstd has levels.")
    if not (level.isascii() and level.isdigit() and int(level) in _ZSTD_LEVELS):
        raise OptionError(f"{text!r}: zstd's levels are 1 to 19.")
    return Compress(codec, int(level))
