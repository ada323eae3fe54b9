"""Files by handle: what the kernel tells of one that it knows without a name.

described   open_by_handle_at(2); Documentation/filesystems/nfs/exporting.rst
"""

import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from migrate.kernel import mounts, procfs
from migrate.kernel.syscalls import address_of, raw
from precopy.errors import KernelError
from precopy.ids import Pid

_HEADER: Final = struct.Struct("<Ii")  # struct file_handle
_MINOR_BITS: Final = 20  # of a dev_t, as the kernel itself has it


def path_of(device: int, inode: int, sort: int, handle: bytes) -> bytes | None:
    """A name under which we see that file; None if there is none.

    ``device`` is its file system's, in the kernel's own encoding.

    Raises:
        PermissionError: that takes CAP_DAC_READ_SEARCH.
    """
    for mount_point in _mounted(device):
        try:
            fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # a file is mounted there, or something above
        try:
            name = _name(fd, sort, handle)
        finally:
            os.close(fd)
        if name is not None and _is(name, inode):
            return name
    return None


def _mounted(device: int) -> Iterator[str]:
    wanted = f"{device >> _MINOR_BITS}:{device & (1 << _MINOR_BITS) - 1}"
    text = procfs.read(Pid(os.getpid()), "mountinfo")
    for mount in mounts.parse_mountinfo(text):
        if mount.device == wanted:
            yield mount.mount_point


def _name(mount_fd: int, sort: int, handle: bytes) -> bytes | None:
    words = bytearray(_HEADER.pack(len(handle), sort) + handle)
    try:
        fd = raw("open_by_handle_at", mount_fd, address_of(words), os.O_PATH)
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise PermissionError(error.errno, "open_by_handle_at") from error
        return None  # it is gone, or the file system knows no handles
    try:
        return os.readlink(os.fsencode(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def _is(name: bytes, inode: int) -> bool:
    try:
        return os.stat(name, follow_symlinks=False).st_ino == inode
    except OSError:
        return False
