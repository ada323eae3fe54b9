r"""/proc/PID/mountinfo and /proc/PID/cgroup: where files and groups hang.

described   proc_pid_mountinfo(5), cgroups(7)

mountinfo escapes space, tab, newline and backslash as octal (fs/proc_namespace.c), so
its fields can be told apart. A cgroup's name holds no newline (cgroup_mkdir() refuses
it), but colons and spaces.
"""

from dataclasses import dataclass

from migrate.kernel.proc_text import MalformedText, text, unescape


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    device: str  # "253:0", decimal
    root: str  # the part of the file system that is mounted
    mount_point: str  # as seen from the reader's root directory
    options: tuple[str, ...]
    tags: tuple[str, ...]  # "shared:1", "master:2", …
    filesystem: str
    source: str
    super_options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CgroupMembership:
    """One line of /proc/PID/cgroup."""

    hierarchy: int  # 0 = cgroup v2
    controllers: tuple[str, ...]
    path: str


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """What the text of /proc/PID/mountinfo says.

    Raises:
        MalformedText: a line is cut short or cannot be read.
    """
    lines = content.split(b"\n")
    if lines.pop():
        raise MalformedText("mountinfo", content[-200:])
    return tuple(map(_mount, lines))


def parse_cgroup(content: bytes) -> tuple[CgroupMembership, ...]:
    """What the text of /proc/PID/cgroup says.

    Raises:
        MalformedText: a line is cut short or cannot be read.
    """
    lines = content.split(b"\n")
    if lines.pop():
        raise MalformedText("cgroup", content[-200:])
    memberships = []
    for line in lines:
        hierarchy, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if not hierarchy.isdigit() or not path.startswith(b"/"):
            raise MalformedText("cgroup", line)
        names = tuple(text(controllers).split(",")) if controllers else ()
        memberships.append(CgroupMembership(int(hierarchy), names, text(path)))
    return tuple(memberships)


def _mount(line: bytes) -> Mount:
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        filesystem, source, super_options = fields[dash + 1 : dash + 4]
        return Mount(
            int(fields[0]),
            int(fields[1]),
            fields[2].decode("ascii"),
            text(unescape(fields[3])),
            text(unescape(fields[4])),
            tuple(text(fields[5]).split(",")),
            tuple(map(text, fields[6:dash])),
            text(unescape(filesystem)),
            text(unescape(source)),
            tuple(text(super_options).split(",")),
        )
    except ValueError:
        raise MalformedText("mountinfo", line) from None
