"""The journal of a departure while its mover lives.

What the rules ask for (``ownership``) is done here where it is a record or a word. To
freeze, thaw and kill is the story's business (``source``): its blocks do so, in the
order that the records allow.
"""

import os
import time
from types import TracebackType
from typing import Final, Self

import msgspec

from migrate import recovery
from migrate.errors import Reason, Refused, RolledBack
from migrate.failpoints import reach
from migrate.journal import Record
from migrate.kernel import procfs
from migrate.ownership import (
    Action,
    Deed,
    JournalFailed,
    Say,
    SourceOwner,
    SourceState,
    Verdict,
    Word,
    Write,
    perform,
)
from migrate.recovery import Standing
from migrate.state_directory import (
    CannotKeep,
    Side,
    StateDirectory,
    boot,
    pid_namespace,
)
from precopy.errors import TaskVanished
from precopy.ids import Pid
from transport import messages as m
from transport.channel import Channel, PeerGaveUp
from transport.errors import TransportError


class Unanswered(Exception):
    """Go was said, and what the destination made of it is not known."""


class DepartureJournal:
    """Who owns a process that leaves, from before it is touched; a context manager.

    Leaving the block lets somebody else go on with it, or forgets it where it stays.
    """

    def __init__(
        self,
        state: StateDirectory,
        transaction: bytes,
        pid: Pid,
        peer: tuple[str, int],
    ) -> None:
        """Begin it.

        Raises:
            Refused: no journal can be kept, or the process is on its way already.
            TaskVanished: it has ended.
        """
        stat = procfs.stat(pid)
        self.record = Record(
            transaction=transaction,
            state_number=SourceState.PRE.value,
            boot=boot(),
            peer_host=peer[0],
            peer_port=peer[1],
            epoch=b"",
            pid=pid,
            start_ticks=stat.start_time_ticks,
            pid_namespace=pid_namespace(),
            leaf=b"",
            keeper=os.getpid(),
            written_s=int(time.time()),
            comm=os.fsencode(stat.name),
        )
        self.state: Final = state
        self._owner = SourceOwner()
        self._channel: Channel | None = None
        try:
            with state.beginning():
                self._require_nobody_else()
                self._kept = state.begin(Side.SOURCE, self.record)
        except CannotKeep as error:
            reason = Reason("journal", str(error), pid)
            raise Refused("It cannot go.", reasons=[reason]) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # The story has thawed it by now; where it is in doubt this is nothing.
            perform(self._owner, self._owner.give_up(), self)
        finally:
            self._kept.close()

    def freezing(self, leaf: str) -> None:
        """It is about to be put into the cgroup ``leaf``, and frozen there.

        Raises:
            RolledBack: that could not be written down.
        """
        self.record = msgspec.structs.replace(self.record, leaf=os.fsencode(leaf))
        perform(self._owner, self._owner.freeze(), self)
        if self._owner.state is not SourceState.FROZEN:
            raise _cannot_write(self.record)

    def lend(self, lent: bytes) -> None:
        """It is about to give this up: have it given back, whatever becomes of us.

        Raises:
            OSError: that could not be written down.
        """
        self._kept.entrust(lent)

    def given_back(self) -> None:
        """It has everything again that it gave up."""
        self._kept.given_back()

    def hand_over(self, channel: Channel, ready: m.Ready, *, timeout_s: float) -> None:
        """Write GO, say Go, and hear that it was accepted. Not one step more: the
        process stands still.

        Raises:
            RolledBack, PeerGaveUp: it was not handed over, and is ours for good.
            Unanswered: nobody knows; only the destination's word counts now.
        """
        self._channel = channel
        self.record = msgspec.structs.replace(self.record, epoch=ready.epoch)
        reach("source.go.before_journal")
        try:
            perform(self._owner, self._owner.ready(ready.epoch), self)
            if self._owner.state is not SourceState.GO:
                raise _cannot_write(self.record)
            reach("source.go.said")
            accepted = channel.expect(m.Accepted, timeout_s=timeout_s)
            reach("source.accepted.heard")
        except PeerGaveUp as gave_up:
            said = gave_up.message
            if isinstance(said, m.Declined):
                declined = self._owner.heard(Verdict.DECLINED, said.epoch)
                perform(self._owner, declined, self)
            if self._owner.is_in_doubt:
                raise Unanswered(str(gave_up)) from gave_up
            raise
        except TransportError as error:
            raise Unanswered(str(error)) from error
        if accepted.died or accepted.epoch != ready.epoch:
            raise Unanswered("the answer is that of another journal")

    def arrived(self) -> None:
        """It was accepted: this copy may be killed."""
        accepted = self._owner.heard(Verdict.ACCEPTED, self.record.epoch)
        perform(self._owner, accepted, self)

    def forgotten(self) -> None:
        """The destination knows that we know."""
        perform(self._owner, self._owner.heard_forgotten(), self)

    @property
    def is_handed_over(self) -> bool:
        """Whether it is not ours any more to let it run."""
        return self._owner.state not in (
            SourceState.PRE,
            SourceState.FROZEN,
            SourceState.ABORTED,
        )

    def is_alive(self) -> bool:
        """Whether the process is there, this one and no other of its pid."""
        try:
            stat = procfs.stat(Pid(self.record.pid))
        except TaskVanished:
            return False
        return (
            stat.start_time_ticks == self.record.start_ticks and stat.state not in "ZX"
        )

    def ask(self) -> Standing:
        """Ask the destination once more; for after the block."""
        return recovery.ask(self.state, self.record)

    def do(self, action: Action) -> None:
        """A record or Go; all else is the story's.

        Raises:
            JournalFailed: of a Write.
            TransportError: Go may be on its way or not.
        """
        match action:
            case Write(state, durable):
                self.record = msgspec.structs.replace(
                    self.record,
                    state_number=state.value,
                    written_s=int(time.time()),
                )
                try:
                    reach(f"source.{state.name.lower()}.write")
                except OSError as error:
                    raise JournalFailed(str(error)) from error
                self._kept.journal.write(self.record, durable=durable)
                reach(f"source.{state.name.lower()}.journalled")
            case Say(Word.GO):
                assert self._channel is not None
                self._channel.send(m.Go())
            case Deed.FORGET:
                self._kept.remove()
            case _:
                return  # done by the blocks of the story

    def _require_nobody_else(self) -> None:
        for name in self.state.names(Side.SOURCE):
            try:
                other, _ = self.state.look(Side.SOURCE, name)
            except FileNotFoundError:
                continue
            if other is not None and _same(other, self.record):
                raise Refused(
                    "It cannot go.",
                    reasons=[
                        Reason(
                            "journal",
                            f"pid {other.pid} is on its way to {other.peer} already "
                            f"(transaction {name}). See migrate status.",
                            other.pid,
                        )
                    ],
                )


def _same(one: Record, other: Record) -> bool:
    return all(
        getattr(one, field) == getattr(other, field)
        for field in ("boot", "pid_namespace", "pid", "start_ticks")
    )


def _cannot_write(record: Record) -> RolledBack:
    return RolledBack(
        f"The journal of transaction {record.name} could not be written.",
        way_out="Is the disk of the state directory well?",
    )
