"""Two or more throw-away hosts on this machine, for the demo, the tests and the bench.

Each host has network, pid, mount, ipc and uts namespaces of its own and an address
on a bridge that it shares with the other hosts of its bed. They see the same file
system, except for a private ``/tmp`` and ``/run``. Needs root, and changes nothing
outside its namespaces but cgroup directories, which are gone again afterwards.
"""

from migrate.testbed.bed import TestBed
from migrate.testbed.errors import TestBedError
from migrate.testbed.host import Agent, Host
from migrate.testbed.process import HostProcess

__all__ = ["Agent", "Host", "HostProcess", "TestBed", "TestBedError"]
