"""Looks at a process whose mappings will not hold still."""

from migrate.kernel import procfs
from precopy.address_space import AddressSpace
from tests.live.victim import running

# Maps, moves and unmaps as fast as it can.
CHURN = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 4
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def churn():
    while True:
        places = [libc.mmap(None, 4096 * n, 3, 0x22, -1, 0) for n in range(1, 40)]
        places = [
            (libc.mremap(p, 4096 * n, 4096 * 2 * n, 1), 2 * n)
            for n, p in enumerate(places, 1)
        ]
        for place, pages in places:
            libc.munmap(place, 4096 * pages)
threading.Thread(target=churn, daemon=True).start()
"""


def test_mappings_are_read_of_a_process_that_maps_all_the_time() -> None:
    with running(CHURN) as victim:
        for _ in range(500):
            assert isinstance(procfs.read_maps(victim.pid), AddressSpace)
            assert isinstance(procfs.read_smaps(victim.pid), AddressSpace)
        assert victim.answers()
