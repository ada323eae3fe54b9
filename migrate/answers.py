"""What tasks answered, kept from one stop to the next.

Before the freeze everything is asked and read. In the freeze the same is asked again,
and only what was answered otherwise is read: of a thread that nothing has happened to
it is known by one comparison of bytes that nothing has.

A kind says what may be taken so (`Kind.in_answers`). What it does not say, or says with
a doubt (`Unsaid`, `must_look`), is looked for by its dump(), each time.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from migrate.kernel.asking import Answer, Form, Reader, Unsaid
from migrate.kernel.remote import Batch, Remote
from migrate.kinds import table
from migrate.kinds.kind import Record, Scope, Source
from migrate.kinds.table import Dumped
from precopy.ids import Tid

# ProcessKind or TaskKind, with what a module may leave out.
Module: TypeAlias = Any

_OWN_TID: Final = 0  # the first question of each form


@dataclass(slots=True)
class _Known:
    """One task, as it was last read."""

    answer: Answer
    own_tid: int
    said: dict[str, Dumped | None] = field(default_factory=dict)
    is_settled: bool = True  # an equal answer means that nothing has changed


class Answers:
    """The kinds of one scope that ask, what was answered, and what that means."""

    def __init__(self, scope: Scope) -> None:
        self._of_tasks = scope is Scope.TASK
        modules: Sequence[Module] = (
            table.task_kinds() if self._of_tasks else table.process_kinds()
        )
        self._modules = [m for m in modules if hasattr(m, "ask")]
        self._known: dict[Tid, _Known] = {}
        self._form: Form | None = None

    def ask(self, remote: Remote, tids: Sequence[Tid]) -> list[Answer]:
        """Ask these stopped threads, one after the other."""
        if self._form is None or self._form.bench != remote.bench:
            asks = [_own_tid, *(module.ask for module in self._modules)]
            self._form = Form(remote, asks)
        return self._form.put(remote, tids)

    def own_tid(self, tid: Tid) -> int:
        """What a thread that was read calls itself."""
        return self._known[tid].own_tid

    def read(self, tid: Tid, answer: Answer) -> tuple[Dumped, ...]:
        """All that a thread's answer says, but what it does not say for certain."""
        known = self._known[tid] = _Known(answer, self._says_own_tid(tid, answer))
        for place, module in enumerate(self._modules, 1):
            try:
                known.said[module.KIND.name] = self._said(tid, answer, place, module)
            except Unsaid:
                pass
            known.is_settled &= module.KIND.in_answers
        known.is_settled &= len(known.said) == len(self._modules)
        return tuple(d for d in known.said.values() if d is not None)

    def news(
        self, source: Source, tid: Tid, answer: Answer, doubted: AbstractSet[str]
    ) -> tuple[Dumped, ...]:
        """What differs from what was read; of ``doubted`` kinds dump() is asked."""
        known = self._known.get(tid)
        if known and known.is_settled and known.answer == answer and not doubted:
            return ()
        own_tid = self._says_own_tid(tid, answer)
        if known is None or known.own_tid != own_tid:
            # It has come since, or another has that number now.
            known = self._known[tid] = _Known(answer, own_tid, is_settled=False)
            differing = set(range(len(self._modules) + 1))
        else:
            assert self._form is not None
            differing = set(self._form.differ(known.answer, answer))
        news = []
        for place, module in enumerate(self._modules, 1):
            kind = module.KIND
            is_known = kind.in_answers and kind.name in known.said
            if is_known and place not in differing and kind.name not in doubted:
                continue
            dumped = self._dumped(source, tid, answer, place, doubted)
            if dumped is not None and dumped != known.said.get(kind.name):
                news.append(dumped)
        return tuple(news)

    def doubted(self, source: Source) -> set[str]:
        """The kinds of which no answer is to be trusted now."""
        return {
            module.KIND.name
            for module in self._modules
            if hasattr(module, "must_look") and module.must_look(source)
        }

    def _dumped(
        self,
        source: Source,
        tid: Tid,
        answer: Answer,
        place: int,
        doubted: AbstractSet[str],
    ) -> Dumped | None:
        module = self._modules[place - 1]
        if module.KIND.name not in doubted:
            try:
                return self._said(tid, answer, place, module)
            except Unsaid:
                pass
        whose = (tid,) if self._of_tasks else ()
        return packed(module, module.dump(source, *whose))

    def _said(
        self, tid: Tid, answer: Answer, place: int, module: Module
    ) -> Dumped | None:
        assert self._form is not None
        return packed(module, self._form.says(tid, answer, place))

    def _says_own_tid(self, tid: Tid, answer: Answer) -> int:
        assert self._form is not None
        found = self._form.says(tid, answer, _OWN_TID)
        assert isinstance(found, int)
        return found


def packed(module: Module, record: Record) -> Dumped | None:
    """The record as it travels; None where there is nothing to carry."""
    return None if record is None else table.pack(module.KIND, record)


def _own_tid(form: Form, batch: Batch) -> Reader[int]:
    at = batch.add("gettid")
    return lambda results: results[at]
