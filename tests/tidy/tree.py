"""The files that people wrote, and what Python makes of them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
OURS: Final = ("bench", "migrate", "precopy", "transport")

_BUILT: Final = {"build", "dist", "__pycache__"}
_TEXT: Final = {".py", ".pyi", ".c", ".h", ".md", ".toml"}
_NAMED: Final = {"Makefile", ".gitignore", "run", "tools"}


@cache
def files() -> tuple[Path, ...]:
    """Every text that people wrote; from the disk, for a copy may have no git."""
    return tuple(sorted(_below(ROOT)))


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            hidden = path.name.startswith(".") and path.name != ".ci"
            if not (hidden or path.name in _BUILT or path.suffix == ".egg-info"):
                yield from _below(path)
        elif path.name in _NAMED or (
            path.suffix in _TEXT and path.name not in {"_native.c"}
        ):
            yield path


def name(path: Path) -> str:
    """The path as people say it: from the root of the repository."""
    return str(path.relative_to(ROOT))


def python(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """The Python files below the folders, parsed."""
    for path in files():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders:
            yield name(path), _parsed(path)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))
