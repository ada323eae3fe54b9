"""/proc/PID/maps and /proc/PID/smaps: text in, an AddressSpace out.

read from   fs/proc/task_mmu.c, show_map_vma(), show_smap_vma_flags()
described   proc_pid_maps(5), proc_pid_smaps(5)

Two traps. Lines end in a newline and in nothing else: a name may hold ``\\r`` or
``\\x0b``, at which bytes.splitlines() would cut. And " (deleted)" is either the
kernel's mark or the end of a real name; the text alone cannot tell, so the name is
kept as it reads.
"""

from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import Final

from migrate.kernel.proc_text import MalformedText, text, unescape
from precopy.address_space import AddressSpace, Prot, Vma

_ADDRESS_MAX: Final = 1 << 64
_NO_FLAGS: Final[frozenset[str]] = frozenset()


def _access_table() -> dict[bytes, tuple[Prot, bool]]:
    """Every "rwxp" that can be printed, with what it means."""
    table = {}
    for read, write, execute, share in product((0, 1), repeat=4):
        letters = "".join(
            letter if wanted else "-"
            for letter, wanted in zip("rwx", (read, write, execute), strict=True)
        )
        prot = Prot(read | write << 1 | execute << 2)
        table[(letters + "ps"[share]).encode()] = (prot, bool(share))
    return table


_ACCESS: Final[Mapping[bytes, tuple[Prot, bool]]] = MappingProxyType(_access_table())


def parse_vma(line: bytes, flags: frozenset[str] = _NO_FLAGS) -> Vma:
    """The VMA that one line of maps describes.

    Raises:
        MalformedText: the line is cut short or is not from maps.
    """
    fields = line.split(None, 5)
    try:
        start, end = fields[0].split(b"-")
        prot, shared = _ACCESS[fields[1]]
        vma = Vma(
            int(start, 16),
            int(end, 16),
            prot,
            shared,
            int(fields[2], 16),
            fields[3].decode("ascii"),
            int(fields[4]),
            text(unescape(fields[5])) if len(fields) == 6 else "",
            flags,
        )
    except (IndexError, KeyError, ValueError):
        raise MalformedText("maps", line) from None
    if not 0 <= vma.start < vma.end <= _ADDRESS_MAX:
        raise MalformedText("maps", line)
    return vma


class MapsParser:
    """Parses maps again and again; a line that was there before costs a lookup.

    Between two looks at one process nearly every line is the same, and the
    second look happens while the process is frozen. Where the whole text is the
    same, so is the answer: the same object.
    """

    def __init__(self) -> None:
        self._maps = b""
        self._space = AddressSpace()
        self._known: dict[bytes, Vma] = {}

    def parse(self, maps: bytes) -> AddressSpace:
        """What ``maps`` says.

        Raises:
            MalformedText: a line is not from maps, or the text ends within one.
        """
        if maps != self._maps:
            known = self._known
            lines = _lines("maps", maps)
            vmas = [known.get(line) or parse_vma(line) for line in lines]
            self._space = _space(vmas)
            self._known = dict(zip(lines, vmas, strict=True))
            self._maps = maps
        return self._space


def parse_maps(maps: bytes) -> AddressSpace:
    """What the text of /proc/PID/maps says; no VMA has flags.

    Raises:
        MalformedText: a line is not from maps, or the text ends within one.
    """
    return _space([parse_vma(line) for line in _lines("maps", maps)])


def parse_smaps(smaps: bytes) -> AddressSpace:
    """What the text of /proc/PID/smaps says, VmFlags included.

    Raises:
        MalformedText: a VMA has no VmFlags, or a line is from elsewhere.
    """
    vmas = []
    header: bytes | None = None
    flag_sets: dict[bytes, frozenset[str]] = {}
    for line in _lines("smaps", smaps):
        # A header begins with a lower-case hexadecimal digit, an attribute with
        # a capital letter; a name cannot begin a line (newlines are escaped).
        if not line[:1].isupper():
            if header is not None:
                raise MalformedText("smaps", header)
            header = line
        elif line.startswith(b"VmFlags:"):
            if header is None:
                raise MalformedText("smaps", line)
            flags = flag_sets.get(line)
            if flags is None:
                words = line[len(b"VmFlags:") :].decode("ascii", "replace").split()
                flags = flag_sets[line] = frozenset(words)
            vmas.append(parse_vma(header, flags))
            header = None
    if header is not None:
        raise MalformedText("smaps", header)
    return _space(vmas)


def _space(vmas: list[Vma]) -> AddressSpace:
    """The address space that these lines, in their order, tell of.

    The kernel lists a running process piece by piece and lets go of it in between
    (fs/proc/task_mmu.c), so what moves or grows meanwhile may be listed twice: the
    later line is the later look, and what it covers is cut off the earlier ones.
    """
    try:
        return AddressSpace(vmas)
    except ValueError:
        kept: list[Vma] = []
        for vma in vmas:
            while kept and kept[-1].start >= vma.start:
                kept.pop()
            if kept and kept[-1].end > vma.start:
                kept[-1] = kept[-1].part(kept[-1].start, vma.start)
            kept.append(vma)
        return AddressSpace(kept)


def _lines(file: str, content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    if lines.pop():
        raise MalformedText(file, content[-200:])
    return lines
