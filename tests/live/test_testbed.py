"""The hosts of a test bed are apart where they must be, and leave nothing."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.testbed import Host, TestBed, TestBedError

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="bed")
def make_bed(tmp_path: Path) -> Iterator[TestBed]:
    with TestBed(shared=[ROOT, tmp_path]) as bed:
        yield bed


def wait_for_death(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(pidfd, closefd=True):
        assert select.select([pidfd], [], [], 10)[0], f"{pid} does not die"


def shell(host: Host, script: str) -> str:
    return host.run(["sh", "-c", script], check=True).stdout


def test_a_host_sees_only_its_own_processes(bed: TestBed) -> None:
    a, b = bed.host("a"), bed.host("b")
    with a.popen(["sleep", "1000"]) as sleeper:
        seen = {entry for entry in shell(a, "exec ls /proc").split() if entry.isdigit()}
        assert {"1", str(sleeper.pid_inside)} <= seen
        assert len(seen) == 3, "init, the sleeper and ls"
        seen = {entry for entry in shell(b, "exec ls /proc").split() if entry.isdigit()}
        assert str(sleeper.pid_inside) not in seen
        assert Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n"


def test_hosts_have_names_of_their_own(bed: TestBed) -> None:
    names = [shell(bed.host(name), "hostname") for name in ("left", "right")]
    assert names == ["left\n", "right\n"]
    assert os.uname().nodename not in {"left", "right"}


def test_hosts_reach_each_other_and_themselves(bed: TestBed) -> None:
    a, b = bed.host("a"), bed.host("b")
    for address in (b.address, "127.0.0.1"):
        with b.socket() as listener, (a if address == b.address else b).socket() as s:
            listener.bind((address, 0))
            listener.listen()
            s.connect(listener.getsockname())
            accepted, peer = listener.accept()
            with accepted:
                s.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
                assert peer[0] == (a.address if address == b.address else address)


def test_the_machine_itself_does_not_see_the_network(bed: TestBed) -> None:
    host = bed.host("a")
    assert "eth0" in shell(host, "cat /proc/net/dev")
    assert "bridge0" not in Path("/proc/net/dev").read_text()
    assert host.address not in Path("/proc/net/fib_trie").read_text()


def test_shared_directories_are_shared_and_tmp_is_private(
    bed: TestBed, tmp_path: Path
) -> None:
    a, b = bed.host("a"), bed.host("b")
    shell(a, f"echo shared > {tmp_path}/file; echo private > /tmp/h5-private")
    assert shell(b, f"cat {tmp_path}/file") == "shared\n"
    assert (tmp_path / "file").read_text() == "shared\n"
    assert shell(b, "ls /tmp/h5-private 2>/dev/null || echo none") == "none\n"
    assert not Path("/tmp/h5-private").exists()


def test_a_shared_directory_must_be_there(tmp_path: Path) -> None:
    with TestBed(shared=[tmp_path / "missing"]) as bed:
        with pytest.raises(TestBedError, match="missing"):
            bed.host("a")
        with pytest.raises(TestBedError, match="cannot be named"):
            bed.host("No Name")


def test_the_exit_of_an_orphan_is_told(bed: TestBed) -> None:
    host = bed.host("a")
    orphan = int(shell(host, "sleep 1000 >/dev/null 2>&1 & echo $!"))
    handle = host.process(orphan)
    with handle:
        assert handle.is_alive()
        with pytest.raises(TimeoutError):
            host.wait_exit(orphan, 0.01)
        handle.send_signal(signal.SIGTERM)
        assert host.wait_exit(orphan, 10) == -signal.SIGTERM
        assert not handle.is_alive()
    assert (orphan, signal.SIGTERM) in host.exits()


def test_exits_are_told_in_order_and_once(bed: TestBed) -> None:
    host = bed.host("a")
    with host.popen(["sh", "-c", "exit 3"]) as process:
        assert process.wait(10) == 3
        assert process.wait() == 3
        with pytest.raises(TimeoutError):
            host.wait_exit(process.pid_inside, 0.01)


LOOK_AT_YOURSELF = """
import os, pathlib, sys
me, out = pathlib.Path("/proc/self"), pathlib.Path(sys.argv[1])
text = {name: (me / name).read_text() for name in ("mountinfo", "status", "stat")}
text["fdinfo"] = "".join((me / "fdinfo" / fd).read_text() for fd in "012")
links = [f"{fd} {os.readlink(me / 'fd' / fd)}" for fd in "012"]
text["fd"] = "\\n".join(links + os.listdir(me / "fd")[3:-1])  # the last lists them
for name in text:
    (out / name).write_text(text[name])
"""


def test_a_command_holds_nothing_from_outside(bed: TestBed, tmp_path: Path) -> None:
    host = bed.host("a")
    command = [sys.executable, "-I", "-S", "-c", LOOK_AT_YOURSELF, str(tmp_path)]
    with host.popen(command) as process:
        assert process.wait(10) == 0
    seen = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert seen["fd"].splitlines() == [f"{fd} /dev/null" for fd in "012"]
    mounts = {line.split()[0] for line in seen["mountinfo"].splitlines()}
    used = re.findall(r"mnt_id:\s*(\d+)", seen["fdinfo"])
    assert len(used) == 3 and set(used) <= mounts
    # Python ignores SIGPIPE and SIGXFSZ, and posix_spawn() of glibc the two signals
    # that it keeps for itself.
    assert "SigIgn:\t0000000181001000" in seen["status"]
    assert "SigBlk:\t0000000000000000" in seen["status"]
    terminal = seen["stat"].rpartition(")")[2].split()[4]
    assert terminal == "0"


def test_a_command_gets_the_signals_that_python_ignores(bed: TestBed) -> None:
    done = bed.host("a").run(["sh", "-c", "kill -PIPE $$"])
    assert done.returncode == -signal.SIGPIPE


def test_output_goes_where_it_is_told(bed: TestBed, tmp_path: Path) -> None:
    host = bed.host("a")
    out = tmp_path / "out"
    command = ["sh", "-c", "pwd; echo $WORD; cat; echo bad >&2"]
    with host.popen(
        command,
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.STDOUT,
        env={"WORD": "word", "PATH": os.environ["PATH"]},
        cwd=tmp_path,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"typed\n")
        process.stdin.close()
        assert process.wait(10) == 0
    assert out.read_text() == f"{tmp_path}\nword\ntyped\nbad\n"


def test_what_cannot_be_started_is_told_in_a_sentence(bed: TestBed) -> None:
    with pytest.raises(TestBedError, match=r"The host a cannot start .*/nonsense\.$"):
        bed.host("a").popen(["/nonsense"])


def test_an_agent_is_ready_when_it_is_there(bed: TestBed) -> None:
    a, b = bed.host("a"), bed.host("b")
    agent = b.agent()
    assert agent.address == b.address
    assert f"listening on {b.address}:{agent.port}" in agent.log
    with a.socket() as s:
        s.connect((agent.address, agent.port))
    assert agent.stop() == 0
    with a.socket() as s, pytest.raises(ConnectionRefusedError):
        s.connect((agent.address, agent.port))


def test_an_agent_that_does_not_start_says_why(bed: TestBed) -> None:
    with pytest.raises(TestBedError, match="--no-such-option"):
        bed.host("a").agent("--no-such-option")


def inheritable() -> set[int]:
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found |= {fd} if os.get_inheritable(fd) else set()
        except OSError:
            pass  # it listed the others
    return found


def test_what_the_maker_execs_holds_nothing_of_the_bed() -> None:
    before = inheritable()
    with TestBed() as bed:
        host = bed.host("a")
        with host.popen(["cat"], stdin=subprocess.PIPE), host.socket():
            assert inheritable() == before


def test_nothing_is_left_after_close(bed: TestBed) -> None:
    host = bed.host("a")
    leaf = host.cgroup / "leaf"
    with host.popen(["sleep", "1000"]) as process:
        leaf.mkdir()
        (leaf / "cgroup.procs").write_text(str(process.pid))
        (leaf / "cgroup.freeze").write_text("1")
        host.close()
        assert not process.is_alive()
        assert not host.cgroup.exists()
        assert host.cgroup.parent.exists()
    bed.close()
    assert not host.cgroup.parent.exists()
    with pytest.raises(TestBedError, match="has been closed"):
        bed.host("b")


def test_a_bed_outlives_the_thread_that_made_it() -> None:
    beds: list[TestBed] = []

    def make() -> None:
        beds.append(TestBed())
        beds[0].host("a")

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    with beds[0] as bed:
        assert shell(bed.hosts["a"], "hostname") == "a\n"


MAKER = """
from migrate.testbed import TestBed
bed = TestBed()
host = bed.host("a")
process = host.popen(["sleep", "1000"])
(host.cgroup / "cgroup.freeze").write_text("1")  # so none of them can help
print(bed.keeper_pid, host.pid, process.pid, host.cgroup, flush=True)
input()
"""


def killed_maker(victim: int) -> tuple[list[int], Path]:
    """Kill -9 the maker (0) or his keeper (1); the pids and the cgroup of the bed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", MAKER], stdin=pipe, stdout=pipe, cwd=ROOT
    ) as maker:
        assert maker.stdout is not None
        *pids, cgroup = maker.stdout.readline().split()
        keeper, init, process = map(int, pids)
        os.kill([maker.pid, keeper][victim], signal.SIGKILL)
        for pid in (keeper, init, process):
            if victim == 0 or pid != keeper:  # a dead keeper is the maker's zombie
                wait_for_death(pid)
        maker.kill()
    return [keeper, init, process], Path(os.fsdecode(cgroup)).parent


def test_nothing_is_left_when_the_maker_is_killed() -> None:
    _, tree = killed_maker(0)
    assert not tree.exists()


def test_the_next_bed_sweeps_after_a_killed_keeper() -> None:
    _, tree = killed_maker(1)
    assert tree.exists()
    with TestBed():
        assert not tree.exists()


def test_without_root_it_says_so() -> None:
    done = subprocess.run(
        [
            *("setpriv", "--bounding-set=-sys_admin"),
            *(sys.executable, "-c", "from migrate.testbed import TestBed; TestBed()"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "needs root" in done.stderr.splitlines()[-1]
