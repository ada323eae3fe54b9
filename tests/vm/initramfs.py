"""The first root of a guest: a busybox, the modules that it needs, and /init."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.kernels import CannotHave, Kernel

MODULES: Final = (
    "virtio_pci",
    "virtio_rng",
    "9p",
    "9pnet_virtio",
    # What the test bed is made of, and a swap device for the tests.
    "bridge",
    "veth",
    "lzo_rle",
    "zram",
)

DIRECTORY: Final = 0o040755
PROGRAM: Final = 0o100755
CONSOLE: Final = 0o020600

# Mounts the host's root, read-only, and goes on there. switch_root and not chroot:
# the kernel makes no user namespaces in a chroot.
_INIT: Final = """\
#!/bin/busybox sh
export PATH=/bin
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in /modules/*; do $b insmod $module; done
options=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,$options,cache=loose host /root
for folder in tmp var/tmp var/lib run; do
    $b mount -t tmpfs -o mode=1777 tmp /root/$folder
done
$b mkdir /root/run/job /root/run/lock
$b mount -t 9p -o rw,$options,cache=none job /root/run/job
for folder in dev proc sys; do $b mount --move /$folder /root/$folder; done
$b cp /bin/busybox /root/run/busybox
exec $b switch_root /root /run/busybox sh /run/job/main
"""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def initramfs(kernel: Kernel) -> bytes:
    """A cpio archive for ``kernel``.

    Raises:
        CannotHave: there is no static busybox here.
    """
    found = shutil.which("busybox")
    if found is None:
        raise CannotHave("guests need busybox (Debian: busybox-static)")
    entries = [
        *(
            _Entry(name, DIRECTORY)
            for name in ("bin", "dev", "proc", "sys", "root", "modules")
        ),
        _Entry("dev/console", CONSOLE, device=(5, 1)),
        _Entry("bin/busybox", PROGRAM, Path(found).read_bytes()),
        _Entry("init", PROGRAM, _INIT.encode()),
        *_modules(kernel),
    ]
    archive = io.BytesIO()
    for number, entry in enumerate(entries, 1):
        _append(archive, number, entry)
    _append(archive, 0, _Entry("TRAILER!!!", 0))
    return archive.getvalue()


def _modules(kernel: Kernel) -> Iterator[_Entry]:
    for number, (name, module) in enumerate(kernel.modules(MODULES)):
        yield _Entry(f"modules/{number:02}-{name}", PROGRAM, module)


def _append(archive: io.BytesIO, number: int, entry: _Entry) -> None:
    """One member in the format "newc": Documentation/driver-api/early-userspace."""
    name = entry.name.encode() + b"\0"
    fields = (
        *(number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0),
        *(*entry.device, len(name), 0),
    )
    archive.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
    archive.write(bytes(-archive.tell() % 4))
    archive.write(entry.data)
    archive.write(bytes(-archive.tell() % 4))
