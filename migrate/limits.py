"""How much the agent takes on: the numbers of agent.toml, and what they are without it.

    startups_begin = 10    # connections that have proved nothing: from here on some are
    startups_rate = 0.3    # dropped, this share of them, rising until
    startups_full = 100    # here, where all are
    arrivals_max = 16      # moves at one time
    memory_max = "64G"     # of one arrival; default: what the host has to spare
    processes_max = 4096   # of one arrival
    threads_max = 32768    # of one arrival
    greeting_s = 30        # from one word to the next, until the offer has come

Sizes of frames, messages, names and counts in an image are part of the protocol and
stand beside it (``transport.frames``, ``transport.messages``, ``image``).
"""

import random
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from migrate import config_directory
from migrate.config_directory import NotOurs
from migrate.options import OptionError, parse_size

FILE: Final = "agent.toml"


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of them."""

    startups_begin: Annotated[int, Meta(ge=1, le=10_000)] = 10
    startups_rate: Annotated[float, Meta(ge=0, le=1)] = 0.3
    startups_full: Annotated[int, Meta(ge=1, le=10_000)] = 100
    arrivals_max: Annotated[int, Meta(ge=1, le=1000)] = 16
    memory_max: str | None = None
    processes_max: Annotated[int, Meta(ge=1, le=4096)] = 4096
    threads_max: Annotated[int, Meta(ge=1, le=32_768)] = 32_768
    greeting_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0

    def __post_init__(self) -> None:
        if self.startups_begin > self.startups_full:
            raise ValueError("startups_begin is above startups_full")
        if self.memory_max is not None:
            self.memory_bytes_max()

    def memory_bytes_max(self) -> int:
        """``memory_max`` in bytes, where it is set."""
        assert self.memory_max is not None
        try:
            return parse_size(self.memory_max)
        except OptionError as error:
            raise ValueError(str(error)) from error

    def drops(self, strangers: int, draw: float) -> bool:
        """Whether a connection is dropped where so many have proved nothing yet.

        ``draw`` is a random number from 0 to 1. As sshd's MaxStartups: who floods the
        port hits mostly himself, since a flood makes up most of what comes.
        """
        if strangers < self.startups_begin:
            return False
        if strangers >= self.startups_full:
            return True
        span = self.startups_full - self.startups_begin
        share = (strangers - self.startups_begin) / span
        return draw < self.startups_rate + (1 - self.startups_rate) * share


def load(folder: Path | None = None) -> Limits:
    """Those of this host.

    Raises:
        NotOurs: the file is not to be trusted, or does not say what it should.
    """
    file = (folder or config_directory.path()) / FILE
    try:
        text = config_directory.read_ours(file)
    except FileNotFoundError:
        return Limits()
    try:
        return msgspec.convert(tomllib.loads(text), Limits)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise NotOurs(f"{file} cannot be read: {error}.") from error


def draw() -> float:
    """For ``drops``; nothing secret hangs on it."""
    return random.random()
