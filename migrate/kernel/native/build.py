"""Builds migrate.kernel._native (see setup.py)."""

import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
API = HERE / "api.h"
SOURCES = (
    "ptrace.c",
    "inject.c",
    "frame.c",
    "skeleton.c",
    "descriptors.c",
    "abi_check.c",
)

# setuptools wants sources relative to setup.py; a build on its own, by
# `python migrate/kernel/native/build.py`, happens in a scratch folder.
WHERE = HERE if __name__ == "__main__" else HERE.relative_to(ROOT)

ffibuilder = FFI()
ffibuilder.cdef(API.read_text())
ffibuilder.set_source(
    "migrate.kernel._native",
    '#include <stddef.h>\n#include <stdint.h>\n#include "api.h"',
    sources=[str(WHERE / name) for name in SOURCES],
    depends=[str(WHERE / name) for name in ("api.h", "frame.h")],
    include_dirs=[str(HERE)],
    # One name for the module, whether pip or a hand built it.
    py_limited_api=False,
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(ffibuilder.compile(tmpdir=scratch))
        target = ROOT / "migrate" / "kernel" / built.name
        staged = target.with_suffix(".new")
        staged.write_bytes(built.read_bytes())
        staged.chmod(0o755)
        staged.rename(target)
