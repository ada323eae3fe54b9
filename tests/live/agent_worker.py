"""An agent with workers for tests: they make a leaf, and end as they are told to.

``python -m tests.live.agent_worker agent`` is the agent, with a worker of this module
for each connection. A worker reads one line from it and does that. ``holds FATE``: put
a child into a frozen leaf and tell its pid and ours; at the next line die (``dies``),
but with a journal that says that it is ours (``commits``), and thawed (``thaws``).
``waits``: go on until SIGTERM.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys

import msgspec
import trio

from migrate import agent, arrival_leaf, logs
from migrate.kernel import cgroups
from migrate.options import Peer
from migrate.ownership import DestinationState
from migrate.state_directory import Side, StateDirectory, boot, pid_namespace
from precopy.ids import Pid
from tests.states.disks import RECORD

WORKERS_MAX = 2
HERE = (sys.executable, "-m", "tests.live.agent_worker")


def serve() -> None:
    """Be the agent."""
    ours = agent.Agent(
        Peer("127.0.0.1", 0),
        workers_max=WORKERS_MAX,
        log=logs.start(verbose=True),
        worker=(*HERE, "worker"),
    )
    trio.run(ours.serve)


def work() -> None:
    """Do what the peer says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--admitted-fd", type=int, required=True)
    given = parser.parse_args()
    os.write(given.admitted_fd, b"1")
    os.close(given.admitted_fd)
    connection = socket.socket(fileno=given.socket_fd)
    connection.setblocking(True)
    connection.set_inheritable(False)
    what, *fate = connection.makefile("r").readline().split()
    if what == "waits":
        connection.send(b"waiting\n")
        signal.pause()
    hold(connection, fate[0])


def hold(connection: socket.socket, fate: str) -> None:
    """Freeze a child in a leaf, say who we are, and end."""
    # Like a process that arrives, it holds nothing of ours.
    child = subprocess.Popen(
        ["sleep", "600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parent = cgroups.current(Pid(os.getpid()))
    name = arrival_leaf.transaction("00ff")
    record = msgspec.structs.replace(
        RECORD,
        transaction=os.urandom(16),
        state_number=DestinationState.READY.value,
        boot=boot(),
        pid_namespace=pid_namespace(),
        leaf=os.fsencode(cgroups.leaf_path(parent, name)),
    )
    kept = StateDirectory().begin(Side.DESTINATION, record)
    leaf = cgroups.Leaf.create(parent, name)
    leaf.adopt(Pid(child.pid))
    leaf.freeze()
    assert leaf.wait_frozen(10)
    if fate in {"commits", "thaws"}:
        accepted = DestinationState.ACCEPTED.value
        kept.journal.write(msgspec.structs.replace(record, state_number=accepted))
    if fate == "thaws":
        leaf.thaw()
    connection.send(f"{child.pid} {os.getpid()}\n".encode())
    connection.makefile("r").readline()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve() if sys.argv[1] == "agent" else work()
