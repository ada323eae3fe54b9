"""What a source wishes of the destination, and tells of this host."""

import os
import time
from typing import Final

from migrate import admission, page_sender, processor
from migrate.image import Outline
from migrate.options import MoveOptions, PidPolicy
from precopy.ids import PAGE_BYTES
from transport import messages as m

_PID_POLICIES: Final = {
    PidPolicy.AUTO: m.PidPolicy.AUTO,
    PidPolicy.KEEP: m.PidPolicy.KEEP,
    PidPolicy.ANY: m.PidPolicy.ANY,
    PidPolicy.NEW_NAMESPACE: m.PidPolicy.NEW_NAMESPACE,
}


def options(outline: Outline, asked: MoveOptions, tracker: str) -> m.Options:
    """What goes beside an outline; ``tracker`` is the name of the one that is used."""
    realtime = time.clock_gettime_ns(time.CLOCK_REALTIME)
    return m.Options(
        codecs=page_sender.offered(asked.compress),
        streams=1,
        tracker=tracker,
        pid_policy=_PID_POLICIES[asked.pid_policy],
        monotonic_minus_realtime_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        - realtime,
        boottime_minus_realtime_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        - realtime,
        page_bytes=PAGE_BYTES,
        machine=os.uname().machine,
        features=(
            *admission.names_of(outline.processes),
            *processor.told(processor.instructions()),
        ),
    )
