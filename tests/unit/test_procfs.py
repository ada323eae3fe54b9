"""The parsers of /proc read what the kernel prints, whatever the target named it."""

import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.kernel import procfs
from migrate.kernel.maps import MapsParser, parse_vma
from migrate.kernel.procfs import MalformedText
from precopy.address_space import Prot
from precopy.errors import TaskVanished
from precopy.ids import Pid, Tid

SELF = Pid(os.getpid())

MAPS = b"""\
55d3c0a00000-55d3c0a02000 r--p 00000000 fe:00 260386                     /usr/bin/head
55d3c0c00000-55d3c0c21000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 ---s 7fffffff000 103:12 18446744073709551615  /a b\tc\\012d \r
7f0000001000-7f0000002000 rw-p 00000000 00:00 0 
7f0000002000-7f0000003000 -wxs 00000000 00:01 2063    /memfd:\xff\xfe (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""  # noqa: W291 - the kernel prints a space after the inode of a nameless VMA


def test_maps_are_read_field_by_field() -> None:
    head, heap, odd, nameless, memfd, vsyscall = procfs.parse_maps(MAPS).vmas
    assert (head.start, head.end) == (0x55D3C0A00000, 0x55D3C0A02000)
    assert (head.prot, head.shared, head.device) == (Prot.READ, False, "fe:00")
    assert (head.inode, head.name) == (260386, "/usr/bin/head")
    assert heap.name == "[heap]" and heap.prot == Prot.READ | Prot.WRITE
    assert (odd.prot, odd.shared, odd.offset) == (Prot(0), True, 0x7FFFFFFF000)
    assert odd.inode == (1 << 64) - 1 and odd.device == "103:12"
    assert nameless.name == ""
    assert memfd.prot == Prot.WRITE | Prot.EXEC
    assert vsyscall.end == 0xFFFFFFFFFF601000


def test_a_name_in_maps_may_hold_any_byte() -> None:
    _, _, odd, _, memfd, _ = procfs.parse_maps(MAPS).vmas
    assert odd.name == "/a b\tc\nd \r"
    assert os.fsencode(memfd.name) == b"/memfd:\xff\xfe (deleted)"


def test_the_deleted_mark_stays_as_part_of_the_name() -> None:
    for name in ("/tmp/x (deleted)", "/tmp/x (deleted) (deleted)"):
        line = f"1000-2000 r--p 00000000 fe:00 7 {name}\n".encode()
        assert procfs.parse_maps(line).vmas[0].name == name


@pytest.mark.parametrize(
    "maps",
    [
        MAPS[:-1],
        MAPS[:100],
        b"1000-2000 r--p 00000000 fe:00\n",
        b"1000-2000 r--x 00000000 fe:00 7\n",
        b"2000-1000 r--p 00000000 fe:00 7\n",
        b"1000-1000 r--p 00000000 fe:00 7\n",
        b"1000 r--p 00000000 fe:00 7\n",
        b"-1000-2000 r--p 00000000 fe:00 7\n",
        b"0-10000000000001000 r--p 00000000 fe:00 7\n",
        b"\n",
        b"zz\n",
    ],
)
def test_maps_cut_short_or_from_elsewhere_are_malformed(maps: bytes) -> None:
    with pytest.raises(MalformedText):
        procfs.parse_maps(maps)


def test_of_an_address_that_is_listed_twice_the_later_line_is_right() -> None:
    lines = (
        b"1000-3000 r--p 00000000 fe:00 7 /a\n",
        b"2000-4000 rw-p 00001000 fe:00 8 /b\n",
        b"2000-5000 rw-p 00002000 fe:00 9 /c\n",
    )
    first, second = procfs.parse_maps(b"".join(lines)).vmas
    assert (first.start, first.end, first.name) == (0x1000, 0x2000, "/a")
    assert (second.start, second.end, second.name) == (0x2000, 0x5000, "/c")


def test_no_maps_at_all_is_an_empty_space() -> None:
    assert procfs.parse_maps(b"").vmas == ()


def test_65_000_lines_are_read() -> None:
    maps = b"".join(
        b"%x-%x rw-p 00000000 00:00 0 \n" % (at << 13, (at << 13) + 4096)
        for at in range(1, 65_531)
    )
    assert len(procfs.parse_maps(maps).vmas) == 65_530


def test_a_parser_that_remembers_says_the_same_as_one_that_does_not() -> None:
    parser = MapsParser()
    changed = MAPS.replace(b"rw-p 00000000 00:00 0  ", b"r--p 00000000 00:00 0  ")
    for maps in (MAPS, MAPS, changed, b"", MAPS):
        assert parser.parse(maps) == procfs.parse_maps(maps)
    space = parser.parse(MAPS)
    assert parser.parse(bytes(bytearray(MAPS))) is space
    assert parser.parse(changed).vmas[0] is space.vmas[0]


def test_a_parser_that_read_nonsense_forgets_nothing() -> None:
    parser = MapsParser()
    space = parser.parse(MAPS)
    with pytest.raises(MalformedText):
        parser.parse(MAPS[:-1])
    assert parser.parse(MAPS) is space


@given(st.binary(max_size=300))
def test_any_bytes_are_maps_or_malformed(maps: bytes) -> None:
    try:
        procfs.parse_maps(maps)
        procfs.parse_smaps(maps)
    except MalformedText:
        pass


@given(st.binary(min_size=1, max_size=80).filter(lambda name: b"\0" not in name))
def test_a_name_without_backslash_comes_through_whole(name: bytes) -> None:
    line = b"1000-2000 r--p 00000000 fe:00 7   /" + name.replace(b"\n", b"\\012")
    if b"\\" not in name:
        assert os.fsencode(parse_vma(line).name) == b"/" + name


def test_smaps_adds_the_flags() -> None:
    smaps = (
        b"1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: rd wr mr uw \n"
        b"2000-3000 r--p 00000000 fe:00 7    /VmFlags: ht\nVmFlags: rd \n"
    )
    first, second = procfs.parse_smaps(smaps).vmas
    assert first.flags == {"rd", "wr", "mr", "uw"}
    assert second.flags == {"rd"} and second.name == "/VmFlags: ht"
    for cut in (len(b"1000-2000 rw-p 00000000 00:00 0 \n"), len(smaps) - 16):
        with pytest.raises(MalformedText):
            procfs.parse_smaps(smaps[:cut])


def test_our_own_maps_and_smaps_agree() -> None:
    maps = procfs.read_maps(SELF)
    smaps = procfs.read_smaps(SELF)
    assert any(vma.name == "[heap]" for vma in maps.vmas)
    known = {(vma.start, vma.end): vma.name for vma in maps.vmas}
    same = [vma for vma in smaps.vmas if known.get((vma.start, vma.end)) == vma.name]
    assert len(same) > len(smaps.vmas) // 2  # the readers themselves map memory
    assert all(vma.flags for vma in smaps.vmas)


STAT = (
    b"4711 (%b) S 1 4711 4710 34816 4711 4194304 1 2 3 4 5 6 7 8 20 -5 3 0 12345 "
    b"1000000 250 18446744073709551615 1 2 140721000000000 0 0 0 0 4096 17 0 0 0 17 1 "
    b"40 1 0 0 0 100 200 300 400 500 600 700 0\n"
)


@pytest.mark.parametrize(
    "name", [b"cat", b") R 1 (", b"a\nb", b"", b"(((", b") ) )", b"\xff) R 2"]
)
def test_stat_is_cut_at_the_last_parenthesis(name: bytes) -> None:
    stat = procfs.parse_stat(STAT % name)
    assert os.fsencode(stat.name) == name
    assert (stat.pid, stat.state, stat.parent, stat.session) == (4711, "S", 1, 4710)
    assert (stat.terminal, stat.nice, stat.threads) == (34816, -5, 3)
    assert (stat.start_time_ticks, stat.stack_start) == (12345, 140721000000000)
    assert (stat.exit_signal, stat.realtime_priority, stat.policy) == (17, 40, 1)
    assert (stat.data, stat.brk_start) == ((100, 200), 300)
    assert (stat.arguments, stat.environment) == ((400, 500), (600, 700))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_malformed(content: bytes) -> None:
    for parse in (
        procfs.parse_stat,
        procfs.parse_status,
        procfs.parse_fdinfo,
        procfs.parse_limits,
        procfs.parse_timers,
        procfs.parse_mountinfo,
        procfs.parse_cgroup,
        procfs.parse_children,
    ):
        try:
            parse(content)
        except MalformedText:
            pass


@pytest.mark.parametrize("cut", [0, 3, 8, 20, 90])
def test_a_stat_cut_short_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedText):
        procfs.parse_stat((STAT % b"cat")[:cut])


def test_status_is_read_field_by_field() -> None:
    status = procfs.parse_status(
        b"Name:\ta\\nb\\\\c\nUmask:\t0027\nState:\tT (stopped)\nTgid:\t10\nNgid:\t0\n"
        b"Pid:\t11\nPPid:\t1\nTracerPid:\t99\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n"
        b"FDSize:\t64\nGroups:\t7 8 \nNSpid:\t11\t3\nKthread:\t0\nCoreDumping:\t1\n"
        b"Threads:\t2\nSigQ:\t0/100\nSigPnd:\t0000000000000001\n"
        b"ShdPnd:\t0000000000000002\nSigBlk:\t0000000000000004\n"
        b"SigIgn:\t0000000000000008\nSigCgt:\t8000000000000000\n"
        b"CapInh:\t0000000000000001\nCapPrm:\t0000000000000002\n"
        b"CapEff:\t0000000000000003\nCapBnd:\t000001ffffffffff\n"
        b"CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
        b"Seccomp_filters:\t1\nCpus_allowed_list:\t0-1\n"
    )
    assert status.name == "a\nb\\c" and status.umask == 0o027
    assert (status.state, status.tgid, status.pid, status.tracer) == ("T", 10, 11, 99)
    assert not status.uids.uniform and status.gids.uniform
    assert status.groups == (7, 8) and status.pids_in_namespaces == (11, 3)
    assert status.signals.caught == 1 << 63 and status.signals.blocked == 4
    assert status.capabilities.bounding == 0x1FFFFFFFFFF
    assert status.no_new_privs and status.seccomp == 2 and status.core_dumping
    assert status.kernel_thread is False and status.allowed_cpus == "0-1"


def test_our_own_status_is_true() -> None:
    status = procfs.status(SELF)
    assert status.tgid == SELF and status.parent == os.getppid()
    assert status.uids.real == os.getuid() and set(os.getgroups()) == set(status.groups)
    assert status.pid == procfs.status(SELF, Tid(SELF)).pid == Tid(SELF)
    stat = procfs.stat(SELF)
    assert stat.session == os.getsid(0) and stat.process_group == os.getpgid(0)


def test_fdinfo_keeps_every_line() -> None:
    info = procfs.parse_fdinfo(
        b"pos:\t5\nflags:\t02100002\nmnt_id:\t27\nino:\t99\n"
        b"eventfd-count:               2a\neventfd-id: 3\neventfd-semaphore: 1\n"
        b"tfd:        5 events:       1f data:                5  pos:0 ino:1 sdev:f\n"
        b"tfd:        6 events: 80000019 data: ffffffffffffffff  pos:-1 ino:2 sdev:f\n"
        b"tfd:        7 events:       19 data:                7\n"
        b"lock:\t1: FLOCK  ADVISORY  WRITE 6417 fe:00:2146439 0 EOF\n"
        b"lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:2146439 5 14\n"
    )
    assert (info.position, info.flags, info.mount_id, info.inode) == (
        5,
        os.O_CLOEXEC | 0o100002,
        27,
        99,
    )
    assert info.field("eventfd-count") == "2a" and info.field("nothing") is None
    assert len(info.fields["tfd"]) == 3
    first, second, third = procfs.epoll_targets(info)
    assert (first.fd, first.events, first.data, first.inode) == (5, 0x1F, 5, 1)
    assert (second.data, second.position) == ((1 << 64) - 1, -1)
    assert (third.fd, third.position, third.device) == (7, None, None)
    flock, ofd = info.locks
    assert (flock.kind, flock.access, flock.pid, flock.end) == (
        "FLOCK",
        "WRITE",
        6417,
        None,
    )
    assert (ofd.kind, ofd.pid, ofd.start, ofd.end) == ("OFDLCK", -1, 5, 14)


def test_timerfd_info_counts_in_nanoseconds() -> None:
    info = procfs.parse_fdinfo(
        b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\nclockid: 1\nticks: 3\n"
        b"settime flags: 01\nit_value: (99, 999935977)\nit_interval: (5, 1)\n"
    )
    timer = procfs.timerfd_info(info)
    assert (timer.clock, timer.ticks, timer.settime_flags) == (1, 3, 1)
    assert (timer.value_ns, timer.interval_ns) == (99_999_935_977, 5_000_000_001)
    with pytest.raises(MalformedText):
        procfs.timerfd_info(
            procfs.parse_fdinfo(b"pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t1038\n")
        )


def test_our_own_descriptors_are_seen_as_they_are(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff \n(deleted)"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    reader, writer = os.pipe()
    poll = select.epoll()
    try:
        os.write(fd, b"12345")
        poll.register(reader, select.EPOLLIN)
        views = {view.number: view for view in procfs.fds(SELF)}
        assert os.fsencode(views[fd].link) == name
        assert views[fd].info.position == 5 and views[fd].info.flags & os.O_APPEND
        assert views[fd].inode == os.fstat(fd).st_ino == views[fd].info.inode
        assert views[reader].link == views[writer].link
        assert views[poll.fileno()].link == "anon_inode:[eventpoll]"
        (target,) = procfs.epoll_targets(views[poll.fileno()].info)
        assert (target.fd, target.events & select.EPOLLIN) == (reader, 1)
        assert procfs.fd(SELF, fd) == views[fd]
    finally:
        poll.close()
        for each in (fd, reader, writer):
            os.close(each)
    with pytest.raises(TaskVanished):
        procfs.fd(SELF, 987654)


def test_limits_are_ours() -> None:
    limits = procfs.limits(SELF)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = limits[resource.RLIMIT_NOFILE]
    assert (found.soft, found.hard) == (soft, hard)
    cpu = limits[resource.RLIMIT_CPU]
    assert len(limits) == 16 and cpu.hard == procfs.RLIMIT_INFINITY


def test_timers_are_read_four_lines_at_a_time() -> None:
    text = (
        b"ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/tid.2634\nClockID: 0\n"
        b"ID: 0\nsignal: 14/0000000000000000\nnotify: none/pid.2630\nClockID: 1\n"
    )
    first, second = procfs.parse_timers(text)
    assert (first.id, first.signal, first.value) == (1, 60, 0x7FFF86E452A8)
    assert (first.notify, first.thread, first.target) == ("signal", True, 2634)
    assert (second.notify, second.thread, second.clock) == ("none", False, 1)
    with pytest.raises(MalformedText):
        procfs.parse_timers(text[: text.index(b"ClockID: 1")])
    assert procfs.timers(SELF) == ()


def test_mountinfo_undoes_its_escapes() -> None:
    first, second = procfs.parse_mountinfo(
        b"36 35 98:0 /m\\040t /mnt\\0112\\134x rw,noatime shared:1 master:2 - ext3 "
        b"/dev/root rw,errors=continue\n"
        b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    )
    assert first.root == "/m t" and first.mount_point == "/mnt\t2\\x"
    assert first.tags == ("shared:1", "master:2") and first.options == ("rw", "noatime")
    assert second.tags == () and second.filesystem == "cgroup2"
    assert procfs.mounts(SELF)


def test_cgroup_paths_may_hold_colons() -> None:
    memory, unified = procfs.parse_cgroup(b"4:memory,cpu:/a:b c\n0::/x (deleted)\n")
    assert memory.controllers == ("memory", "cpu") and memory.path == "/a:b c"
    assert (unified.hierarchy, unified.controllers) == (0, ())
    assert unified.path == "/x (deleted)"
    assert procfs.cgroups(SELF)


def test_children_and_threads_are_listed() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import threading, signal\n"
            "threading.Thread(target=signal.pause).start()\n"
            "print(flush=True); signal.pause()",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        pid = Pid(child.pid)
        assert pid in procfs.children(SELF)
        tids = procfs.threads(pid)
        assert int(tids[0]) == pid and len(tids) == 2
        assert procfs.status(pid, tids[1]).tgid == pid
        assert procfs.namespaces(pid, tids[1]) == procfs.namespaces(SELF)
    finally:
        child.kill()
        child.communicate()


def test_a_process_that_went_away_is_vanished() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = Pid(child.pid)
    child.wait()
    for look in (
        procfs.read_maps,
        procfs.read_smaps,
        procfs.stat,
        procfs.status,
        procfs.threads,
        procfs.children,
        procfs.fds,
        procfs.limits,
        procfs.timers,
        procfs.namespaces,
    ):
        with pytest.raises(TaskVanished):
            look(gone)


def test_a_zombie_has_no_memory_and_no_descriptors() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    pid = Pid(child.pid)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert procfs.status(pid).state == "Z" and procfs.stat(pid).state == "Z"
        assert procfs.read_maps(pid).vmas == () and procfs.fds(pid) == ()
    finally:
        child.wait()


def test_a_thread_may_be_called_anything() -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal\n"
            "open('/proc/self/comm', 'wb').write(b') R 1 (\\n\\\\\\xff')\n"
            "print(flush=True); signal.pause()",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        stat, status = procfs.stat(Pid(child.pid)), procfs.status(Pid(child.pid))
        assert os.fsencode(stat.name) == b") R 1 (\n\\\xff" == os.fsencode(status.name)
        assert stat.parent == SELF == status.parent
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def test_all_descriptors_are_seen_as_each_of_them_is(tmp_path: Path) -> None:
    """More than fit into the first buffer, and one that changes between two looks."""
    path = tmp_path / ("n" * 200)
    path.write_bytes(b"content")
    files = [path.open("rb", buffering=0) for _ in range(600)]
    try:
        views = procfs.fds(SELF)
        assert list(views) == [procfs.fd(SELF, view.number) for view in views]
        assert {file.fileno() for file in files} <= {view.number for view in views}
        files[300].seek(3)
        moved = {view.number: view for view in procfs.fds(SELF)}
        assert moved[files[300].fileno()].info.position == 3
        assert moved[files[299].fileno()].info.position == 0
    finally:
        for file in files:
            file.close()
