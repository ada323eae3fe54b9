"""The journal of an arrival while its worker lives, and the last words of a hand-over.

The rules are those of ``ownership``. From the record of ACCEPTED on it is ours: that
record is on the disk before the process may run, and this is the one wait for a disk
while it stands still.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import msgspec

from migrate import recovery
from migrate.errors import Reason, RefusedByDestination
from migrate.failpoints import reach
from migrate.journal import Record
from migrate.kernel import procfs
from migrate.kernel.cgroups import Leaf
from migrate.ownership import (
    Action,
    Deed,
    DestinationOwner,
    DestinationState,
    JournalFailed,
    Say,
    Word,
    Write,
    perform,
)
from migrate.state_directory import (
    CannotKeep,
    Side,
    StateDirectory,
    boot,
    pid_namespace,
)
from precopy.ids import Pid
from transport import messages as m
from transport.channel import Channel
from transport.errors import TransportError


class ArrivalJournal:
    """Who owns a process that arrives, from before it is built.

    ``undo`` ends all that was built of it.
    """

    def __init__(
        self, state: StateDirectory, channel: Channel, leaf: str, undo: ExitStack
    ) -> None:
        """Begin it; it is on the disk when this returns.

        Raises:
            CannotKeep: there is no room for a journal.
        """
        assert channel.transaction is not None
        self._state: Final = state
        self._channel: Final = channel
        self._undo = undo
        self._leaf: Leaf | None = None
        self._reasons: tuple[m.Reason, ...] = ()
        self._restore_ns = 0
        self._began_ns = 0
        self._owner = DestinationOwner()
        self._record = Record(
            transaction=channel.transaction,
            state_number=DestinationState.NONE.value,
            boot=boot(),
            peer_host=channel.peer_host,
            peer_port=0,
            epoch=state.epoch,
            pid=0,
            start_ticks=0,
            pid_namespace=pid_namespace(),
            leaf=os.fsencode(leaf),
            keeper=os.getpid(),
            written_s=int(time.time()),
            comm=b"",
        )
        self._kept = state.begin(Side.DESTINATION, self._record)

    def close(self) -> None:
        """Somebody else may go on with it."""
        self._kept.close()

    @property
    def is_ours(self) -> bool:
        """Whether it was accepted."""
        return self._owner.state is DestinationState.ACCEPTED

    @property
    def is_standing(self) -> bool:
        """Whether it is ready, and not settled yet."""
        return self._owner.state is DestinationState.READY

    def stand(self, pid: Pid, leaf: Leaf, *, restore_ns: Callable[[], int]) -> None:
        """It is whole, verified, frozen, and traced by nobody: say Ready."""
        stat = procfs.stat(pid)
        self._leaf = leaf
        self._record = msgspec.structs.replace(
            self._record,
            pid=pid,
            start_ticks=stat.start_time_ticks,
            comm=os.fsencode(stat.name),
        )
        self._restore_ns = restore_ns()
        perform(self._owner, self._owner.stand(), self)

    def accept(self) -> None:
        """Go has come: it is ours as soon as that is on the disk; then it runs."""
        self._began_ns = time.monotonic_ns()
        # Whatever happens to the story from here on, only the rules end what was built.
        self._undo = self._undo.pop_all()
        reach("destination.go.heard")
        perform(self._owner, self._owner.heard_go(), self)

    def give_up(self, reasons: tuple[m.Reason, ...]) -> None:
        """It failed: end what was built, and say so if it is ours to say."""
        self._reasons = reasons
        perform(self._owner, self._owner.give_up(), self)

    def conclude(self) -> None:
        """Hear that the source knows, and forget. Meanwhile others may answer."""
        assert self._leaf is not None
        # While there is a journal: nobody looks for a leaf without one.
        self._leaf.dissolve()
        self._kept.close()
        self._channel.expect(m.Fin)
        reach("destination.fin.heard")
        recovery.forget_arrival(self._state, self._record.name)
        reach("destination.forgotten")
        self._channel.send(m.FinAck())

    def do(self, action: Action) -> None:
        """Do one.

        Raises:
            JournalFailed: of a Write.
            TransportError: Ready could not be said.
        """
        match action:
            case Write(state, durable):
                self._write(state, durable=durable)
            case Say(word):
                self._say(word)
            case Deed.THAW:
                assert self._leaf is not None
                self._leaf.thaw()
                reach("destination.thawed")
            case Deed.KILL:
                self._undo.close()
            case Deed.FORGET:
                self._kept.remove()
            case Deed.FREEZE:
                raise AssertionError("it was never anything else")

    def _write(self, state: object, *, durable: bool) -> None:
        assert isinstance(state, DestinationState)
        name = f"destination.{state.name.lower()}"
        self._record = msgspec.structs.replace(
            self._record, state_number=state.value, written_s=int(time.time())
        )
        try:
            reach(f"{name}.write")
        except OSError as error:
            raise JournalFailed(str(error)) from error
        self._kept.journal.write(self._record, durable=durable)
        reach(f"{name}.journalled")

    def _say(self, word: Word) -> None:
        transaction, epoch = self._record.transaction, self._state.epoch
        if word is Word.READY:
            self._channel.send(m.Ready(b"", epoch, self._restore_ns))
            reach("destination.ready.said")
            return
        took_ns = time.monotonic_ns() - self._began_ns
        try:
            if word is Word.ACCEPTED:
                self._channel.send(m.Accepted(transaction, epoch, False, took_ns))
                reach("destination.accepted.said")
            elif self._channel.may_say(m.Declined):
                self._channel.send(m.Declined(transaction, epoch, self._reasons))
                self._channel.close(drain_s=1.0)
            elif self._reasons and self._channel.may_say(m.Refused):
                self._channel.send(m.Refused(self._reasons))
                self._channel.close(drain_s=1.0)
            elif self._channel.may_say(m.Abort):
                self._channel.abort(self._reasons)
                self._channel.close(drain_s=1.0)
        except TransportError:
            # It will ask again.
            return


def refused(error: CannotKeep) -> RefusedByDestination:
    """What the source hears where no journal can be kept."""
    return RefusedByDestination("Refused.", reasons=[Reason("journal", str(error))])
