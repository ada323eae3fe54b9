"""A link that carries only so much, in both directions: tc-tbf(8) at both hosts."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bench.ground import Ground, TrialFailed
from migrate.testbed import Host
from migrate.testbed.namespaces import Namespace, enter
from migrate.testbed.network import HOST_LINK

_LATENCY_S: Final = 0.05  # what waits in the queue at most
_BURST_BYTES_MIN: Final = 64 << 10  # the kernel cuts larger packets up
_BURST_S: Final = 0.002  # and a timer may come this late
_ROOT: Final = 0xFFFFFFFF  # TC_H_ROOT of <linux/pkt_sched.h>


@contextmanager
def shaped(place: Ground, rate_bytes_per_s: int) -> Iterator[None]:
    """The link of both hosts carries ``rate_bytes_per_s``; 0 leaves it as it is."""
    with ExitStack() as undo:
        for host in (place.a, place.b) if rate_bytes_per_s else ():
            _inside(host, _limit, rate_bytes_per_s)
            undo.callback(_inside, host, _lift, 0)
        yield


def _inside(
    host: Host, change: Callable[[IPRoute, int, int], None], rate_bytes_per_s: int
) -> None:
    """Call ``change`` in the network namespace of ``host``, on a thread of its own.

    A thread that has gone there does not come back: it ends.
    """

    def there() -> None:
        namespace = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(namespace, Namespace.NETWORK)
        finally:
            os.close(namespace)
        with IPRoute() as links:
            index = links.link_lookup(ifname=HOST_LINK)[0]
            change(links, index, rate_bytes_per_s)

    with ThreadPoolExecutor(1) as threads:
        try:
            threads.submit(there).result()
        except NetlinkError as error:
            raise TrialFailed(
                f"The link of {host.name} cannot be limited: {error}. It needs a "
                "kernel with CONFIG_NET_SCH_TBF (modprobe sch_tbf)."
            ) from error


def _limit(links: IPRoute, index: int, rate_bytes_per_s: int) -> None:
    burst_bytes = max(_BURST_BYTES_MIN, int(rate_bytes_per_s * _BURST_S))
    links.tc(
        "replace",
        "tbf",
        index,
        parent=_ROOT,
        rate=rate_bytes_per_s,
        burst=burst_bytes,
        limit=burst_bytes + int(rate_bytes_per_s * _LATENCY_S),
    )


def _lift(links: IPRoute, index: int, _: int) -> None:
    links.tc("del", index=index, parent=_ROOT)
