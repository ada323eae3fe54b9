"""The write-once record of who owns a process, as it lies on the disk.

A journal is one small file for one transaction and one side, with two slots that are
written in turn. A record is a whole slot: head, digest, body. Its number says which of
two is the younger, and the digest whether it was written to its end; a slot that was
torn is none, and the record before it is still in the other. The file has its full size
and its blocks from the beginning, so no record ever meets a full disk, and a sync has
data to write and nothing else.

A record that was written is seen by all who come after us while this kernel runs. After
a power cut there is what was synced, and perhaps more. A sync that failed has lost data
and may succeed when it is repeated, so after one the record is written anew, or not
believed.
"""

import hashlib
import struct
from typing import Final, Protocol

import msgspec

from migrate.ownership import DestinationState, JournalFailed, SourceState, State

SLOT_BYTES: Final = 4096
EPOCH_BYTES: Final = 16

_SLOTS: Final = 2
_MAGIC: Final = b"MIGJRNL\x01"  # the last byte is the version of the format
# magic, number, length of the body; then the digest, then the body as msgpack
_HEAD: Final = struct.Struct(">8sQI")
_DIGEST_BYTES: Final = 16
_BODY_AT: Final = _HEAD.size + _DIGEST_BYTES
BODY_BYTES_MAX: Final = SLOT_BYTES - _BODY_AT


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that somebody needs who finds it and must go on. The order is the format."""

    transaction: bytes
    state_number: int
    boot: bytes  # /proc/sys/kernel/random/boot_id of the kernel that has the copy
    peer_host: str
    peer_port: int  # 0: the peer is no agent, and cannot be asked
    epoch: bytes  # of the destination's journal; empty before Ready
    pid: int  # of the copy here, as we see it
    start_ticks: int  # proc_pid_stat(5), field 22: tells it from another of that pid
    pid_namespace: int
    leaf: bytes  # path of the cgroup that holds it or will; any bytes, as names may be
    keeper: int  # the process that wrote this
    written_s: int  # since the epoch of time(2); for people only
    comm: bytes

    @property
    def state(self) -> State:
        """Its state, as the rules know it."""
        return _STATES[self.state_number]

    @property
    def name(self) -> str:
        """The transaction as people write it."""
        return self.transaction.hex()

    @property
    def peer(self) -> str:
        """Whom it went to or came from."""
        host = f"[{self.peer_host}]" if ":" in self.peer_host else self.peer_host
        return f"{host}:{self.peer_port}" if self.peer_port else host


_STATES: Final[dict[int, State]] = {
    state.value: state for state in (*SourceState, *DestinationState)
}


class Disk(Protocol):
    """Where the slots lie."""

    def read(self) -> bytes:
        """Both slots, as they are now."""

    def write(self, offset: int, data: bytes) -> None:
        """Written, for all who read; not more."""

    def sync(self) -> None:
        """Everything written is on the disk; an error means that nothing is known."""


def encode(record: Record, number: int) -> bytes:
    """A slot with ``record`` in it.

    Raises:
        ValueError: it is too long.
    """
    body = msgspec.msgpack.encode(record)
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"a record of {len(body)} bytes fits no slot")
    head = _HEAD.pack(_MAGIC, number, len(body))
    return (head + _digest(head, body) + body).ljust(SLOT_BYTES, b"\0")


def decode(slot: bytes) -> tuple[int, Record] | None:
    """The number and the record of a slot; None if there is none that is whole."""
    if len(slot) < SLOT_BYTES:
        return None
    magic, number, length = _HEAD.unpack_from(slot)
    if magic != _MAGIC or length > BODY_BYTES_MAX:
        return None
    body = slot[_BODY_AT : _BODY_AT + length]
    if slot[_HEAD.size : _BODY_AT] != _digest(slot[: _HEAD.size], body):
        return None
    try:
        record = msgspec.msgpack.decode(body, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return (number, record) if record.state_number in _STATES else None


def _digest(head: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(head + body, digest_size=_DIGEST_BYTES).digest()


class Journal:
    """One transaction's record, by its keeper."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._number, self._record = self._youngest()

    @property
    def record(self) -> Record | None:
        """The last one that is known to be there."""
        return self._record

    def write(self, record: Record, *, durable: bool = False) -> None:
        """Make it the last one; when ``durable``, on the disk before this returns.

        Raises:
            JournalFailed: it may be there or not, now or after a power cut. It is
                never repeated: the next record goes into the same slot.
        """
        number = self._number + 1
        offset = number % _SLOTS * SLOT_BYTES
        try:
            self._disk.write(offset, encode(record, number))
            if durable:
                self._disk.sync()
        except OSError as error:
            # A number that may be on the disk is not given to another record. By two
            # more, the slot stays the same: the older one is still good.
            self._number = number + 1
            raise JournalFailed(
                f"The record of {record.name} could not be kept: {error.strerror}."
            ) from error
        self._number, self._record = number, record

    def _youngest(self) -> tuple[int, Record | None]:
        data = self._disk.read()
        slots = (data[at : at + SLOT_BYTES] for at in range(0, len(data), SLOT_BYTES))
        whole = [found for slot in slots if (found := decode(slot)) is not None]
        if not whole:
            return 0, None
        return max(whole, key=lambda found: found[0])
