"""What is installed: all that is needed, under three names and no fourth."""

import tomllib
from typing import Any

from tests.tidy import tree


def setuptools_settings() -> dict[str, Any]:
    settings = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())
    tool: dict[str, Any] = settings["tool"]["setuptools"]
    return tool


def test_every_package_is_listed() -> None:
    """By hand, so that nothing is installed by accident; and none is forgotten."""
    there = {
        ".".join(path.parent.relative_to(tree.ROOT).parts)
        for path in tree.files()
        if path.name == "__init__.py"
    }
    installed = {
        name
        for name in there
        if name.partition(".")[0] in {"migrate", "precopy", "transport"}
    }
    assert set(setuptools_settings()["packages"]) == installed


def test_what_is_needed_at_run_time_is_installed() -> None:
    """C programs that are compiled where they run, and the types of the C cores."""
    listed = setuptools_settings()["package-data"]
    for package, patterns in listed.items():
        folder = tree.ROOT / package.replace(".", "/")
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: no {pattern}"
    for path in tree.files():
        package = ".".join(path.parent.relative_to(tree.ROOT).parts)
        if package in setuptools_settings()["packages"] and path.suffix != ".py":
            assert any(path.match(pattern) for pattern in listed[package]), path
