"""What tells the file that is mapped from another one of the same name.

Pages that a process only ever read come from the file again at the destination, so it
must be the same file there. Comparing whole libraries would take longer than moving
the process; the size and a digest of the first and the last page tell versions of a
program apart (an ELF file begins with its header and ends with its section table,
whose offsets move with every change of size).
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from migrate.image import MappedFile
from migrate.shared_objects import SharedObjects
from precopy.address_space import Vma
from precopy.ids import PAGE_BYTES, Pid

_DIGEST_BYTES = 16


class MappingVanished(Exception):
    """A mapping went away while we looked at its file: look again."""


def edges_of(path: Path) -> tuple[int, bytes]:
    """Size in bytes, and the digest, of the file at ``path``.

    Raises:
        OSError: it cannot be opened or read.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        first = os.pread(file.fileno(), PAGE_BYTES, 0)
        last = os.pread(file.fileno(), PAGE_BYTES, max(0, size - PAGE_BYTES))
    return size, hashlib.blake2b(first + last, digest_size=_DIGEST_BYTES).digest()


def mapped_files(
    pid: Pid, vmas: Iterable[Vma], objects: SharedObjects
) -> tuple[MappedFile, ...]:
    """Each file that these mappings of ``pid`` show, once.

    What has no name goes to ``objects``.

    Looked at through /proc/PID/map_files, which names the file that is mapped even
    where its path has come to lead elsewhere (proc_pid_map_files(5)).

    Raises:
        MappingVanished: one of them is not there any more, or no longer the same.
    """
    found: dict[str, MappedFile] = {}
    for vma in vmas:
        if not vma.inode or vma.name in found:
            continue
        path = Path(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}")
        try:
            if objects.of_mapping(pid, vma) is not None:
                continue
            size, edges = edges_of(path)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise MappingVanished from error
        found[vma.name] = MappedFile(os.fsencode(vma.name), size, edges)
    return tuple(found.values())
