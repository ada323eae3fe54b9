"""After Go and no answer: the source asks until it is told, or told to stop asking."""

from typing import Final

import trio

from migrate.departure_journal import DepartureJournal
from migrate.errors import InDoubt, RolledBack
from migrate.recovery import Standing

AGAIN_S: Final = (0.1, 5.0)  # at first, and at most


async def ask_for_ever(journal: DepartureJournal, doubt: InDoubt) -> None:
    """Return once it is known that it arrived. No time that passes answers instead.

    Raises:
        InDoubt: the asking was called off, and others go on with it (``doubt``); or it
            died over there.
        RolledBack: the destination will never run it, and it runs here.
    """
    pause_s = AGAIN_S[0]
    try:
        while True:
            standing = await trio.to_thread.run_sync(
                journal.ask, abandon_on_cancel=True
            )
            if standing not in (Standing.IN_DOUBT, Standing.UNDER_WAY):
                break
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S[1])
    except trio.Cancelled:
        # Whoever called it off is told how it ended: it did not.
        raise doubt from None
    if standing is Standing.UNKNOWN:
        # Somebody else on this host has settled it: it is alive here or not.
        standing = Standing.HERE if journal.is_alive() else Standing.THERE
    if standing is Standing.HERE:
        raise RolledBack(
            f"The link was lost at the hand-over of pid {journal.record.pid}, and the "
            "destination did not take it.",
            way_out="Start the move again.",
            report=doubt.report,
        )
    if standing is Standing.LOST:
        raise InDoubt(
            f"Process {journal.record.pid} arrived, and died with its host.",
            way_out=f"See: migrate resolve {journal.record.name}.",
            report=doubt.report,
        )
