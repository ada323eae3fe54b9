"""The text of /proc, as far as all of its files have it in common.

The kernel prints what the target chose: names of files, of threads, of mappings.
So every parser here takes bytes, expects any byte anywhere in a name, and answers
a line that it cannot read with MalformedText, never with a guess.
"""

import re

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


class MalformedText(ValueError):
    """A file of /proc held a line that its reader does not understand."""

    def __init__(self, file: str, line: bytes) -> None:
        super().__init__(f"/proc/…/{file} has a line that makes no sense: {line!r}")
        self.file = file
        self.line = line


def unescape(name: bytes) -> bytes:
    r"""``name`` with the kernel's octal escapes (``\012``) undone.

    The kernel does not escape the backslash itself everywhere (maps: newline
    only), so a file that is really called ``a\012b`` reads as one with a newline
    in it. Who must know looks at /proc/PID/map_files (procfs.mapped_file).
    """
    if b"\\" not in name:
        return name
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name)


def text(name: bytes) -> str:
    """``name`` as str; bytes that are not UTF-8 survive as surrogates."""
    return name.decode("utf-8", "surrogateescape")
