"""Rules of the house for code that no linter knows."""

import ast
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from tests.tidy import tree

LINES_MAX: Final = 500

# A file that is longer, and why its length is one idea.
LONG: Final[dict[str, str]] = {}

# Who may catch whatever comes, and what becomes of it.
CATCH_ALL: Final = {
    "migrate/agent.py": "a line in the log, and the next arrival",
    "migrate/cli.py": "a sentence, and exit code 1",
    "migrate/worker.py": "a line in the log; the source has heard, or hears silence",
    "migrate/tracer_thread.py": "raised again in the thread that asked",
    "migrate/brake.py": "raised again in the thread that asks for the pauses",
    "migrate/page_sender.py": "raised again in the thread that sends",
}

# Where there is no event to wait for.
SLEEPS: Final = {
    "migrate/lent_locks.py": "fcntl(2) waits for a lock only in who is to have it",
    "tests/leaks.py": "the kernel tells nobody when it has taken a namespace down",
    "tests/live/stage.py": "nothing tells when another process blocks in a call",
}

NAMELESS: Final = {"utils", "util", "helpers", "common", "misc", "base", "manager"}


def _import_contracts() -> dict[str, dict[str, Any]]:
    settings = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    return {contract["name"]: contract for contract in contracts}


def test_a_long_file_has_a_reason() -> None:
    """At 500 lines a file is asked what its second idea is."""
    long = {
        tree.name(path)
        for path in tree.files()
        if path.suffix in {".py", ".c", ".h"}
        and len(path.read_text().splitlines()) > LINES_MAX
    }
    assert long == set(LONG)


def test_a_module_is_named_by_its_idea() -> None:
    """A drawer for everything fills with everything."""
    stray = [tree.name(path) for path in tree.files() if path.stem in NAMELESS]
    assert stray == []


def test_only_the_front_catches_whatever_comes() -> None:
    """Elsewhere an error has a class; or it goes on, tidied up after or translated."""
    found = [
        f"{path}:{node.lineno}"
        for path, module in tree.python(*tree.OURS)
        if path not in CATCH_ALL
        for node in ast.walk(module)
        if isinstance(node, ast.ExceptHandler)
        and _catches_all(node)
        and not _passes_on(node)
    ]
    assert found == []


def _catches_all(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    classes = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        one is None
        or (isinstance(one, ast.Name) and one.id in {"Exception", "BaseException"})
        for one in classes
    )


def _passes_on(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def test_nobody_sleeps() -> None:
    """Who waits for time to pass waits too long, or not long enough."""
    found = {
        path
        for path, module in tree.python(*tree.OURS, "tests")
        for node in ast.walk(module)
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "sleep"
            and isinstance(node.value, ast.Name)
            and node.value.id == "time"
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(alias.name == "sleep" for alias in node.names)
        )
    }
    assert found == set(SLEEPS)


def test_only_drivers_are_async() -> None:
    """The ones that the contract about trio lets import it."""
    contract = _import_contracts()["trio steers: only drivers are async"]
    drivers = [edge.removesuffix(" -> trio") for edge in contract["ignore_imports"]]
    found = {
        path
        for path, module in tree.python(*tree.OURS)
        for node in ast.walk(module)
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncWith | ast.Await)
        and not any(_covers(driver, path) for driver in drivers)
    }
    assert found == set()


def _covers(driver: str, path: str) -> bool:
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if driver.endswith(".**"):
        return module.startswith(driver.removesuffix("**"))
    return module == driver


def test_a_c_core_has_one_owner() -> None:
    """Only migrate.kernel says ptrace; only precopy touches a page."""
    owners = {"migrate.kernel._native": "migrate/kernel", "precopy._native": "precopy"}
    found = [
        f"{path} imports {module}"
        for path, tree_of_it in tree.python(*tree.OURS)
        for module in _imports(tree_of_it)
        if module in owners and not path.startswith(f"{owners[module]}/")
    ]
    assert found == []


def _imports(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_contracts_name_only_what_is_there() -> None:
    """A layer that has gone would leave its place to the next stray."""
    gone = [
        f"{container}.{module}"
        for contract in _import_contracts().values()
        for container in contract.get("containers", [])
        for module in _layer_names(contract)
        if not (tree.ROOT / container.replace(".", "/") / f"{module}.py").exists()
        and not (tree.ROOT / container.replace(".", "/") / module).is_dir()
    ]
    assert gone == []


def _layer_names(contract: dict[str, Any]) -> Iterator[str]:
    for layer in contract["layers"]:
        yield from re.findall(r"[A-Za-z_]\w*", layer)


def test_c_is_quiet_and_knows_no_python() -> None:
    """It returns a count or -errno; what to say about that is not its business."""
    loud = re.compile(r"\b(f?printf|f?puts|putchar|perror|Py[A-Z_]\w*)\s*\(|Python\.h")
    found = [
        f"{tree.name(path)}:{number}"
        for path in tree.files()
        if path.suffix in {".c", ".h"} and path.parent.name == "native"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if loud.search(line.partition("//")[0])
    ]
    assert found == []


def test_a_test_says_what_must_be_true() -> None:
    """Its module says of what; its name is a sentence, or its docstring is."""
    silent = []
    for path, module in tree.python("tests"):
        if not path.rpartition("/")[2].startswith("test_"):
            continue
        tests = [
            node
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
        ]
        if not tests or ast.get_docstring(module) is None:
            silent.append(path)
        silent += [
            f"{path}::{test.name}"
            for test in tests
            if len(test.name.split("_")) < 4 and ast.get_docstring(test) is None
        ]
    assert silent == []


def test_every_folder_of_tests_is_a_package() -> None:
    """A folder that is none, and is named like one of ours, would hide ours."""
    bare = {
        tree.name(path.parent)
        for path in tree.files()
        if path.suffix == ".py"
        and path.is_relative_to(tree.ROOT / "tests")
        and not (path.parent / "__init__.py").exists()
    }
    assert bare == set()
