"""Owners and journals with one promise broken each: what a walk has to notice."""

from collections.abc import Sequence

from migrate import journal
from migrate.journal import Journal, Record
from migrate.ownership import (
    Action,
    Deed,
    DestinationOwner,
    DestinationState,
    Say,
    SourceOwner,
    SourceState,
    Verdict,
    Word,
    Write,
)


class SaysGoFirst(SourceOwner):
    def ready(self, epoch: bytes) -> Sequence[Action]:
        return tuple(reversed(super().ready(epoch)))


class GivesUpAfterGo(SourceOwner):
    def give_up(self) -> Sequence[Action]:
        if self.state is SourceState.GO:
            return (Write(SourceState.ABORTED), Deed.THAW)
        return super().give_up()


class ThawsGoWhenItStarts(SourceOwner):
    def recovered(self) -> Sequence[Action]:
        if self.state is SourceState.GO:
            return (Write(SourceState.ABORTED), Deed.THAW)
        return super().recovered()


class KillsAtGo(SourceOwner):
    def ready(self, epoch: bytes) -> Sequence[Action]:
        actions = super().ready(epoch)
        return (*actions, Deed.KILL) if actions else ()


class BelievesAnyJournal(SourceOwner):
    def heard(self, verdict: Verdict, epoch: bytes) -> Sequence[Action]:
        return super().heard(verdict, self.epoch)


class SaysGoThoughItFailed(SourceOwner):
    def failed(self, action: Write) -> Sequence[Action]:
        if action.state is SourceState.GO:
            return (Say(Word.GO),)
        return super().failed(action)


class TakesNotYetForNo(SourceOwner):
    def heard(self, verdict: Verdict, epoch: bytes) -> Sequence[Action]:
        if verdict is Verdict.NOT_YET:
            verdict = Verdict.DECLINED
        return super().heard(verdict, epoch)


class RunsWhenReady(DestinationOwner):
    def stand(self) -> Sequence[Action]:
        return (*super().stand(), Write(DestinationState.ACCEPTED, True), Deed.THAW)


class DoesNotSync(DestinationOwner):
    def _accept(self) -> Sequence[Action]:
        return (Write(DestinationState.ACCEPTED), Deed.THAW, Say(Word.ACCEPTED))


class ThawsFirst(DestinationOwner):
    def _accept(self) -> Sequence[Action]:
        write, thaw, say = super()._accept()
        return (thaw, write, say)


class AcceptsWhatItDeclined(DestinationOwner):
    def heard_go(self) -> Sequence[Action]:
        if self.state is DestinationState.DECLINED:
            return self._accept()
        return super().heard_go()

    def _decline(self) -> Sequence[Action]:
        return (Write(DestinationState.DECLINED), Say(Word.DECLINED))


class SaysNoAndForgetsIt(DestinationOwner):
    def _decline(self) -> Sequence[Action]:
        return (Say(Word.DECLINED),)


class SaysNoBeforeItIsWritten(DestinationOwner):
    def give_up(self) -> Sequence[Action]:
        if self.state is DestinationState.ACCEPTED:
            return ()
        return (Say(Word.DECLINED), *super().give_up())

    def recovered(self) -> Sequence[Action]:
        return () if self.state is DestinationState.READY else super().recovered()


class ForgetsWhatItAccepted(DestinationOwner):
    def _accept(self) -> Sequence[Action]:
        return (*super()._accept(), Deed.FORGET)


class ThawsThoughItFailed(DestinationOwner):
    def failed(self, action: Write) -> Sequence[Action]:
        if action.state is DestinationState.ACCEPTED:
            return (Deed.THAW, Say(Word.ACCEPTED))
        return super().failed(action)


class BelievesWhatItFinds(DestinationOwner):
    def recovered(self) -> Sequence[Action]:
        if self.state is DestinationState.ACCEPTED:
            return (Deed.THAW, Say(Word.ACCEPTED))
        return super().recovered()


class SaysNoThoughItMayReadYes(DestinationOwner):
    def failed(self, action: Write) -> Sequence[Action]:
        if action.state is DestinationState.DECLINED:
            self.state = DestinationState.DECLINED
            return (Deed.KILL, Say(Word.DECLINED))
        return super().failed(action)


class DeclinesWhatItAcceptedWhenItStarts(DestinationOwner):
    def recovered(self) -> Sequence[Action]:
        return self._decline() if self.has_copy else super().recovered()


class OneSlot(Journal):
    """Writes over the record that it may still need."""

    def write(self, record: Record, *, durable: bool = False) -> None:
        self._number += 1
        super().write(record, durable=durable)


class ReadsTheOlder(Journal):
    def _youngest(self) -> tuple[int, Record | None]:
        data = self._disk.read()
        size = journal.SLOT_BYTES
        slots = (data[at : at + size] for at in range(0, len(data), size))
        whole = [found for slot in slots if (found := journal.decode(slot))]
        return min(whole, key=lambda found: found[0]) if whole else (0, None)
