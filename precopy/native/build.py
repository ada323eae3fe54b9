"""Builds precopy._native: run by setup.py, or by hand to build it in place."""

import shutil
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
API = HERE / "api.h"
SOURCES = ["digests.c", "page_set.c", "pagemap.c", "pages.c", "uffd.c"]

ffibuilder = FFI()
ffibuilder.cdef(API.read_text())
ffibuilder.set_source(
    "precopy._native",
    '#include <stddef.h>\n#include <stdint.h>\n#include "api.h"',
    sources=[str(HERE / source) for source in SOURCES],
    depends=[str(API), str(HERE / "runs.h")],
    include_dirs=[str(HERE)],
    # One name for the module, whether pip or a hand built it.
    py_limited_api=False,
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Wvla"],
)


def build_in_place() -> Path:
    """Compile in a folder of its own and put the module beside its .pyi."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(ffibuilder.compile(tmpdir=folder))
        target = HERE.parent / built.name
        # A running process may have the old one mapped: replace it, do not write it.
        staged = target.with_suffix(".new")
        shutil.copy2(built, staged)
        return staged.replace(target)


if __name__ == "__main__":
    print(build_in_place())
