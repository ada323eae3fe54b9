"""What the processor can do that a program may have found out, and goes on to use.

A program asks once (CPUID; the C library does when it chooses its memcpy) and keeps
the answer in its memory, which moves. On a processor that lacks such an instruction it
would be killed by SIGILL, some time. So whatever the source has, the destination has.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from transport import messages as m

_CPUINFO: Final = Path("/proc/cpuinfo")
_FIRST_BYTES: Final = 16384  # one processor of it; to read all takes its time
_FLAGS: Final = re.compile(r"^flags\s*: (.*)$", re.MULTILINE)
# Names of instructions in /proc/cpuinfo (asm/cpufeatures.h). The others tell of what
# only a kernel sees or what makes no program fail: bugs, clocks, virtualisation.
_INSTRUCTIONS: Final = re.compile(
    r"s?sse\w*|pni|avx\w*|amx\w*|fma4?|f16c|bmi\d|abm|popcnt|movbe|v?aes|v?pclmulqdq"
    r"|gfni|sha_ni|sha512|sm[34]|adx|rdrand|rdseed|fsgsbase|xsave\w*|cx16|lahf_lm"
    r"|3dnow\w*|clflush\w*|clwb|cldemote|movdir\w+|serialize|waitpkg|enqcmd|rtm|hle"
    r"|ospke|user_shstk|tbm|xop|lwp|rdtscp|clzero|rdpid|mwaitx|mmx\w*|cmov|fxsr\w*"
)
_FEATURE: Final = "cpu."
_TEXT_MAX: Final = 256  # of one feature


def instructions(text: str | None = None) -> frozenset[str]:
    """Those of this host; of ``text``, which is the beginning of /proc/cpuinfo."""
    if text is None:
        with _CPUINFO.open("rb", buffering=0) as file:
            text = os.read(file.fileno(), _FIRST_BYTES).decode("ascii", "replace")
    flags = _FLAGS.search(text)
    names = flags[1].split() if flags else []
    return frozenset(name for name in names if _INSTRUCTIONS.fullmatch(name))


def told(names: Iterable[str]) -> tuple[m.Feature, ...]:
    """For the destination to compare."""
    lines = [""]
    for name in sorted(names):
        if len(lines[-1]) + len(name) >= _TEXT_MAX:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name}".lstrip()
    return tuple(m.Feature(f"{_FEATURE}{i}", line) for i, line in enumerate(lines))


def missing(features: Iterable[m.Feature], here: frozenset[str]) -> tuple[str, ...]:
    """What the source has told of and is not ``here``."""
    theirs = {
        name
        for feature in features
        if feature.name.startswith(_FEATURE)
        for name in feature.value.split()
    }
    return tuple(sorted(theirs - here))
