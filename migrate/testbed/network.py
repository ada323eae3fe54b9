"""The wires of a bed: one bridge, and a veth pair from it to each host.

The bridge lives in the network namespace of the keeper, so the death of the keeper
takes it away, and each host's end lives in the namespace of the host.
"""

import os
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from migrate.testbed.errors import TestBedError
from migrate.testbed.namespaces import Namespace, enter

BRIDGE: Final = "bridge0"
HOST_LINK: Final = "eth0"


def make_bridge() -> None:
    """Create the bridge in our own network namespace."""
    try:
        with IPRoute() as links:
            # Spanning tree stays off, so that ports forward at once.
            links.link("add", ifname=BRIDGE, kind="bridge", state="up")
    except NetlinkError as e:
        raise TestBedError(
            f"The test bed cannot make a bridge: {e}. It needs root, and a kernel "
            "with CONFIG_BRIDGE (modprobe bridge)."
        ) from e


def plug_in(
    port: str, namespace_fd: int, own_fd: int, *, address: str, prefix_bits: int
) -> None:
    """Join a host to the bridge.

    ``namespace_fd`` is the network namespace of the host, ``own_fd`` ours; ``port``
    names our end of the pair.
    """
    try:
        with IPRoute() as links:
            bridge = links.link_lookup(ifname=BRIDGE)[0]
            links.link(
                "add",
                ifname=port,
                kind="veth",
                peer={"ifname": HOST_LINK, "net_ns_fd": namespace_fd},
            )
            index = links.link_lookup(ifname=port)[0]
            links.link("set", index=index, master=bridge, state="up")
        enter(namespace_fd, Namespace.NETWORK)
        try:
            with IPRoute() as links:
                index = links.link_lookup(ifname=HOST_LINK)[0]
                links.addr("add", index=index, address=address, prefixlen=prefix_bits)
                links.link("set", index=index, state="up")
                loopback = links.link_lookup(ifname="lo")[0]
                links.link("set", index=loopback, state="up")
        finally:
            enter(own_fd, Namespace.NETWORK)
    except NetlinkError as e:
        raise TestBedError(
            f"The test bed cannot give {address} to a host: {e}. It needs root, and "
            "a kernel with CONFIG_VETH (modprobe veth)."
        ) from e


def own_namespace() -> int:
    """A descriptor of the network namespace we are in; the caller closes it."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
