"""What somebody asked the bench for."""

from dataclasses import dataclass
from enum import Enum


class Pages(Enum):
    """The pages that the memory of a workload is made of."""

    SMALL = "4k"
    HUGE = "huge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options; what is empty or None is each bench's to choose."""

    sizes_bytes: tuple[int, ...] = ()
    write_rates_bytes_per_s: tuple[int, ...] = ()
    pages: tuple[Pages, ...] = ()
    runs: int | None = None
    criu: bool = False
    threads: tuple[int, ...] = ()
    files: tuple[int, ...] = ()
    vmas: tuple[int, ...] = ()
    link_rates_bytes_per_s: tuple[int, ...] = ()  # 0: as fast as it is
    window_s: float = 3.0  # what a brownout is compared with, before and after
    heartbeat_us: int = 1000
    tracker: str = "auto"

    def move_options(self) -> list[str]:
        """Of the command, in every bench."""
        return ["--tracker", self.tracker]
