"""A disk for journals with a page cache before it, and what may go wrong with both."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from migrate.journal import SLOT_BYTES, Record
from migrate.ownership import DestinationState, SourceState

EPOCH: Final = b"first epoch 0000"
EMPTY: Final = bytes(SLOT_BYTES)

RECORD: Final = Record(
    transaction=b"transaction 0001",
    state_number=SourceState.PRE.value,
    boot=bytes(16),
    peer_host="10.0.0.2",
    peer_port=7077,
    epoch=EPOCH,
    pid=4711,
    start_ticks=1,
    pid_namespace=1,
    leaf=b"/migrate-1",
    keeper=1,
    written_s=0,
    comm=b"a",
)
RECORDS: Final = {
    state: msgspec.structs.replace(RECORD, state_number=state.value)
    for state in (*SourceState, *DestinationState)
}


class Fails(Enum):
    """How a write fails."""

    NOT = "not"
    AT_ONCE = "nothing is written"
    LATE = "written, and then an error"
    WITH_THE_AGENT = "written, and the agent dies before the sync"


class AgentDied(Exception):
    """In the middle of an action."""


@dataclass
class Disk:
    """Two slots: as everybody reads them, and as a power cut leaves them."""

    cache: list[bytes]
    disk: list[bytes]
    fails: Fails = Fails.NOT

    def read(self) -> bytes:
        return b"".join(self.cache)

    def write(self, offset: int, data: bytes) -> None:
        if self.fails is Fails.AT_ONCE:
            raise OSError(5, "Input/output error")
        self.cache[offset // SLOT_BYTES] = data
        if self.fails is Fails.LATE:
            raise OSError(5, "Input/output error")
        if self.fails is Fails.WITH_THE_AGENT:
            raise AgentDied

    def sync(self) -> None:
        self.disk[:] = self.cache
