"""Debian's stock kernels, downloaded and unpacked, never installed.

A kernel stays in the cache as it was when it was first asked for; removing its folder
gets the newest one.
"""

import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

CACHE: Final = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "migrate-guests"
)

# What we call a kernel, and the package that depends on the newest of its kind.
PACKAGES: Final = {
    "6.1": "linux-image-amd64",
    "6.12": "linux-image-6.12-amd64",
}


class CannotHave(Exception):
    """Something that a guest needs is not here and cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel in ``folder``."""

    name: str
    folder: Path

    @property
    def image(self) -> Path:
        """The ELF image, which qemu enters directly (PVH): nothing to unpack."""
        return self.folder / "vmlinux"

    def modules(self, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
        """These modules and what they depend on, in the order of loading.

        What this kernel does not have as a module is passed over: it is built in.
        """
        files = {
            _module_name(path): path for path in self.folder.glob("modules/**/*.ko*")
        }
        loaded: dict[str, bytes] = {}

        def load(name: str) -> None:
            if name in loaded or name not in files:
                return
            module = _unpacked(files[name].read_bytes())
            for needed in _depends(module):
                load(needed)
            loaded[name] = module

        for name in wanted:
            load(name)
        return list(loaded.items())


def kernel(name: str) -> Kernel:
    """The kernel called ``name``, from the cache or from Debian.

    Raises:
        CannotHave: it is not cached, and there is no way to get it.
    """
    found = Kernel(name, CACHE / name)
    if not found.folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpacking-") as scratch:
            unpacked = _unpack(_download(PACKAGES[name], Path(scratch)))
            try:
                unpacked.rename(found.folder)
            except OSError:
                if not found.folder.exists():  # else somebody else was faster
                    raise
    return found


def _download(package: str, folder: Path) -> Path:
    """The .deb of the newest kernel that ``package`` stands for, in ``folder``."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise CannotHave("kernels are unpacked from Debian's packages (no apt-get)")
    said = ""
    for update_first in (False, True):
        if update_first:
            _run(["apt-get", "update", "-qq"], folder)
        _, depends = _run(["apt-cache", "depends", package], folder)
        found = re.search(r"Depends: (linux-image-\S+)", depends)
        if found is None:
            said = f"no package {package}"
            continue
        ok, said = _run(["apt-get", "download", "-qq", found[1]], folder)
        if ok:
            return next(folder.glob("*.deb"))
    raise CannotHave(f"{package} cannot be downloaded: {said.strip()[-200:]}")


def _unpack(package: Path) -> Path:
    """A folder with vmlinux and the modules of a kernel package."""
    folder = package.parent / "kernel"
    tree = package.parent / "tree"
    ok, said = _run(["dpkg", "-x", str(package), str(tree)], package.parent)
    if not ok:
        raise CannotHave(f"{package.name} cannot be unpacked: {said.strip()[-200:]}")
    folder.mkdir()
    (image,) = tree.glob("boot/vmlinuz-*")
    (folder / "vmlinux").write_bytes(_elf_of(image.read_bytes()))
    (folder / "package").write_text(package.name + "\n")
    (modules,) = tree.glob("**/lib/modules")
    modules.rename(folder / "modules")
    return folder


def _run(command: Sequence[str], folder: Path) -> tuple[bool, str]:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode == 0, done.stdout


def _elf_of(bzimage: bytes) -> bytes:
    """The kernel proper: Documentation/arch/x86/boot.rst, payload_offset."""
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return _unpacked(bzimage[start : start + length])


def _unpacked(data: bytes) -> bytes:
    """What was compressed, in whichever way kernels are; the rest behind is ignored."""
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(data)
    if data.startswith(b"\x7fELF"):
        return data
    raise CannotHave(f"a kernel is packed in an unknown way ({data[:4].hex()})")


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _depends(module: bytes) -> list[str]:
    """Names in the field `depends` of section .modinfo: modinfo(8)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode().replace("-", "_") if found else ""
    return [name for name in names.split(",") if name]
