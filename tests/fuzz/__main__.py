"""``python -m tests.fuzz NAME [OPTION…]``: guided by coverage, options of libFuzzer.

Needs the extra ``fuzz`` (atheris). It begins with the corpus of the tree; what it finds
on the way goes to build/fuzz/NAME, and bytes that make a parser fail to build/fuzz.
"""

import sys
from pathlib import Path

import atheris

FOUND = Path("build/fuzz")


def main(name: str, *options: str) -> None:
    """Until an option or a defect ends it."""
    with atheris.instrument_imports(include=["migrate", "precopy", "transport"]):
        from tests.fuzz.parsers import CORPUS, PARSERS
    parser = PARSERS[name]
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    prefix = f"-artifact_prefix={FOUND}/{name}-"
    atheris.Setup(
        [sys.argv[0], prefix, *options, str(found), str(CORPUS / name)],
        parser.try_with,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
