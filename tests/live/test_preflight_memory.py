"""Memory and programs that cannot be made again over there are refused by name."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from migrate.kernel import lineage
from precopy.ids import Pid
from tests.live.refused import CALLS, alone, condition, refusals, sentence
from tests.live.victim import NotArranged

_NOT_EVERYWHERE = frozenset(
    {"aio", "guard_pages", "hugetlb", "io_uring", "memfd_secret", "protection_key"}
    | {"sealed", "userfaultfd"}
)


def _replaced(name: str) -> str:
    return (
        CALLS + f"path = {name!r}\nopen(path, 'w').write('x' * 4096)\n"
        "file = open(path, 'rb')\nkept = mmap.mmap(file.fileno(), 4096, prot=1)\n"
        "file.close()\nos.unlink(path)\nopen(path, 'w').write('y' * 4096)"
    )


@pytest.mark.parametrize(
    ("arrange", "kind", "what"),
    [
        (
            "shm = libc.shmget(0, 4096, 0o1600)\nlibc.shmat(shm, None, 0)\n"
            "libc.shmctl(shm, 0, None)",
            "sysv_shm",
            "has System V shared memory",
        ),
        (
            "fd = call(447, 0)\nos.ftruncate(fd, 4096)\naddress(flags=1, fd=fd)\n"
            "os.close(fd)",
            "memfd_secret",
            "has secret memory",
        ),
        (
            "ring = ctypes.c_ulong(0)\ncall(206, 8, ctypes.byref(ring))",
            "aio",
            "has the ring of an AIO context",
        ),
        (
            "ring = ctypes.create_string_buffer(120)\nfd = call(425, 8, ring)\n"
            "address(flags=1, fd=fd)\nos.close(fd)",
            "io_uring",
            "has the rings of an io_uring",
        ),
        ("address(1 << 21, flags=0x44022)", "hugetlb", "has huge pages"),
        (
            "fd = call(323, 1)\napi = ctypes.create_string_buffer(24)\n"
            "api[0] = 0xaa\nassert libc.ioctl(fd, 0xc018aa3f, api) == 0\n"
            "area = struct.pack('<QQQQ', address(), 4096, 1, 0)\n"
            "assert libc.ioctl(fd, 0xc020aa00, area) == 0",
            "userfaultfd",
            "has memory under userfaultfd(2)",
        ),
        ("call(28, address(), 4096, 102)", "guard_pages", "has guard pages"),
        ("call(462, address(), 4096, 0)", "sealed", "has sealed memory"),
        (
            "key = call(330, 0, 0)\ncall(329, address(), 4096, 3, key)",
            "protection_key",
            "has memory under protection keys",
        ),
        (
            "lines = open('/proc/self/maps').read().splitlines()\n"
            "line, = [line for line in lines if '[vvar_vclock]' in line]\n"
            "start, end = (int(a, 16) for a in line.split()[0].split('-'))\n"
            "call(25, start, end - start, end - start, 3, address(end - start))",
            "vdso",
            "The kernel's own mappings",
        ),
    ],
    ids=lambda value: value if value.isidentifier() else "",
)
def test_memory_that_cannot_be_made_again_is_refused(
    arrange: str, kind: str, what: str
) -> None:
    try:
        with alone(f"{CALLS}\n{arrange}") as victim:
            before = condition(victim.pid)
            message = sentence(victim.pid, kind)
            assert what in message and str(victim.pid) in message
            assert condition(victim.pid) == before
            assert victim.answers()
    except NotArranged:
        if kind not in _NOT_EVERYWHERE:
            raise
        pytest.skip(f"this kernel or machine has no {kind}")


def test_a_semaphore_that_would_be_undone_is_refused() -> None:
    arrange = CALLS + (
        f"sem = libc.semget({os.getpid()}, 1, 0o1600)\n"
        "assert libc.semop(sem, struct.pack('<HhH', 0, 1, 0x1000), 1) == 0"
    )
    try:
        with alone(arrange) as victim:
            assert "System V semaphore that is to be undone when it ends" in sentence(
                victim.pid, "semaphore"
            )
    finally:
        subprocess.run(["ipcrm", "-S", str(os.getpid())], check=True)


@pytest.mark.parametrize(
    ("arrange", "what"),
    [
        ("address(flags=0x21)", "/dev/zero (deleted)"),
        (
            "fd = os.memfd_create('x')\nos.ftruncate(fd, 4096)\n"
            "address(flags=2, fd=fd)\nos.close(fd)",
            "/memfd:x (deleted)",
        ),
        ("kept = os.memfd_create('x')", "/memfd:x (deleted)"),
    ],
)
def test_what_is_shared_with_a_stranger_is_refused(arrange: str, what: str) -> None:
    """With a child it is not: the family goes as one, and its child alone does not."""
    born = (
        "\nimport signal\nif not os.fork():\n    libc.prctl(1, 9)\n    signal.pause()"
    )
    with alone(CALLS + arrange + born) as victim:
        assert refusals(victim.pid) == []
        (child,) = lineage.family(Pid(victim.pid))[1:]
        message = sentence(child.pid, "shared_memory")
        assert f"pid {child.pid} shares {what} with pid {victim.pid}" in message


def test_a_mapped_file_must_still_have_its_name(tmp_path: Path) -> None:
    """One that has none left goes along; one that has another is not found by it."""
    name = str(tmp_path / "data (deleted)")
    with alone(_replaced(name)) as victim:
        assert refusals(victim.pid) == []
    named = _replaced(name).replace("os.unlink", "os.link(path, path + '2')\nos.unlink")
    with alone(named) as victim:
        message = sentence(victim.pid, "mapped_file")
        assert f"has the file {name} (deleted), which is no longer there" in message
    with alone(_replaced(name).replace("os.unlink(path)\n", "")) as victim:
        assert refusals(victim.pid) == []


def test_private_memory_of_dev_zero_may_go() -> None:
    arrange = "fd = os.open('/dev/zero', 2)\naddress(flags=2, fd=fd)\nos.close(fd)"
    with alone(f"{CALLS}\n{arrange}") as victim:
        assert refusals(victim.pid) == []


def _deleted(program: Path) -> None:
    program.unlink()


def _setuid(program: Path) -> None:
    program.chmod(0o755 | stat.S_ISUID)


def _capable(program: Path) -> None:
    # struct vfs_cap_data, revision 2, CAP_NET_RAW: linux/capability.h
    data = bytes.fromhex("0000000200200000000000000000000000000000")
    os.setxattr(program, "security.capability", data)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_deleted, "that file is no longer there under its name"),
        (_setuid, "gives its user more rights than he has"),
        (_capable, "gives its user more rights than he has"),
    ],
)
def test_the_program_must_be_there_and_be_plain(
    tmp_path: Path, change: Callable[[Path], None], what: str
) -> None:
    program = tmp_path / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    child = subprocess.Popen(
        [program, "1000"], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        change(program)
        assert what in sentence(child.pid, "executable")
    finally:
        child.kill()
        child.wait()
