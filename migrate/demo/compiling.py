"""Compile the small C programs that are moved to show that moving works."""

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class WorkloadError(Exception):
    """A workload could not be compiled, started or asked; a whole sentence."""


def compiled(name: str, sources: Sequence[Path], folder: Path | None = None) -> Path:
    """The program, compiled by ``$CC`` or cc unless that was done before.

    It has to lie at the same path on both hosts. ``folder`` defaults to one below
    ``$XDG_CACHE_HOME``, else ``~/.cache``. Headers among the ``sources`` are found from
    all of them.

    Raises:
        WorkloadError: there is no compiler, or it complained.
    """
    folders = dict.fromkeys(path.parent for path in sources)
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra"),
        *(f"-I{path}" for path in folders),
        *(str(path) for path in sources if path.suffix == ".c"),
    ]
    content = [path.read_bytes() for path in sources]
    digest = hashlib.sha256(repr((command, content)).encode()).hexdigest()
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "migrate"
    program = folder / f"{name}-{digest[:16]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Beside it, so that the rename is one step and nobody sees half a program.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile(name, [*command, "-o", f"{scratch}/{name}"])
            os.rename(f"{scratch}/{name}", program)
    return program


def _compile(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise WorkloadError(
            f"The program {name} cannot be compiled: there is no {command[0]}. Install "
            "a C compiler, or name one in $CC."
        ) from None
    if done.returncode != 0:
        raise WorkloadError(f"The program {name} cannot be compiled:\n{done.stderr}")
