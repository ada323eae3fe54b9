"""What cannot go is refused in a sentence, all of it at once, and is left as it was."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from migrate import preflight
from migrate.kernel import procfs
from precopy.errors import TaskVanished
from precopy.ids import Pid
from tests.live.refused import CALLS, alone, condition, refusals, sentence

# A child that does not outlive its parent (PR_SET_PDEATHSIG).
_CHILD = CALLS + "os.fork() or (libc.prctl(1, 9), print(end=''), signal.pause())\n"


def test_an_ordinary_process_can_go() -> None:
    with alone("threading.Thread(target=signal.pause, daemon=True).start()") as victim:
        before = condition(victim.pid)
        assert refusals(victim.pid) == []
        assert condition(victim.pid) == before
        assert victim.answers()


def test_nobody_is_not_moved() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert sentence(child.pid, "process") == (
        f"There is no process with pid {child.pid}. Look it up again."
    )


def test_a_thread_is_not_a_process() -> None:
    with alone("threading.Thread(target=signal.pause, daemon=True).start()") as victim:
        thread = procfs.threads(victim.pid)[1]
        assert sentence(thread, "process").startswith(
            f"{thread} is a thread of process {victim.pid} (python"
        )


def test_init_and_ourselves_stay_here() -> None:
    assert sentence(1, "process").startswith("pid 1 is the init of this host (")
    assert sentence(os.getpid(), "process") == (
        f"pid {os.getpid()} is migrate itself, which does the moving and stays here."
    )
    with alone() as victim:
        (reason,) = preflight.reasons(victim.pid, own_pids={victim.pid})
        assert "is migrate itself" in reason.message


def test_a_kernel_thread_is_part_of_the_kernel() -> None:
    thread = Pid(2)  # kthreadd, the first of them
    try:
        name = procfs.stat(thread).name
    except TaskVanished:
        name = ""
    if name != "kthreadd":
        pytest.skip("this pid namespace has no kernel threads")
    assert sentence(thread, "process").endswith(
        "is a kernel thread: it is part of this kernel."
    )


def test_a_zombie_has_ended_already() -> None:
    with alone() as victim:
        victim.child.kill()
        os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
        assert sentence(victim.pid, "process").endswith(
            f"has ended already: it is a zombie until its parent, pid {os.getpid()}, "
            "waits for it."
        )


def test_a_traced_process_names_its_tracer() -> None:
    with alone() as victim:
        before = condition(victim.pid)
        seize = f"assert libc.ptrace(0x4206, {victim.pid}, 0, 0) == 0"
        with alone(CALLS + seize) as tracer:
            message = sentence(victim.pid, "tracer")
            assert f"is traced by pid {tracer.pid} (python" in message
            message = sentence(tracer.pid, "tracer")
            assert f"pid {tracer.pid} traces pid {victim.pid} (python" in message
        assert condition(victim.pid) == before
        assert victim.answers()


def test_a_family_goes_together() -> None:
    """Children share what they inherited with nobody who stays behind."""
    with alone(_CHILD + _CHILD) as victim:
        assert len(procfs.children(victim.pid)) == 2
        assert refusals(victim.pid) == []


def test_a_part_of_a_family_shares_with_the_rest() -> None:
    with alone(CALLS + "kept = call(290, 0, 0)\n" + _CHILD) as victim:
        (child,) = procfs.children(victim.pid)
        (message,) = [r.message for r in refusals(child) if "eventfd" in r.message]
        assert f"which pid {victim.pid} has too" in message


def test_a_child_that_was_not_waited_for_goes_along() -> None:
    arrange = "child = os.fork() or os._exit(0)\nos.waitid(os.P_PID, child, 0x01000004)"
    with alone(arrange) as victim:
        assert refusals(victim.pid) == []


def test_a_stopped_process_is_to_be_continued_first() -> None:
    with alone() as victim:
        victim.child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WNOWAIT)
        assert f"kill -CONT {victim.pid}" in sentence(victim.pid, "stopped")
        assert procfs.status(victim.pid).state == "T"


def test_a_32_bit_program_is_refused(tmp_path: Path) -> None:
    # An ELF header, one segment, and: mov eax, pause; int 0x80; jmp to the start.
    code = bytes.fromhex("b81d000000cd80ebf7")
    base, headers = 0x08048000, 52 + 32
    size = headers + len(code)
    words = [2, 3, 1, base + headers, 52, 0, 0, 52, 32, 1, 0, 0, 0]
    sizes = [2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2]
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += b"".join(
        w.to_bytes(n, "little") for w, n in zip(words, sizes, strict=True)
    )
    segment = [1, 0, base, base, size, size, 5, 4096]
    program = tmp_path / "narrow"
    program.write_bytes(header + b"".join(w.to_bytes(4, "little") for w in segment))
    with program.open("ab") as file:
        file.write(code)
    program.chmod(0o755)
    try:
        child = subprocess.Popen([program], start_new_session=True)
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs: {error}")
    try:
        assert sentence(child.pid, "32-bit").endswith(
            f"is a 32-bit program ({program}): only those for x86-64 can be moved."
        )
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        (0x04000000, "uts"),
        (0x08000000, "ipc"),
        (0x40000000, "network"),
        (0x00020000, "mount"),
        (0x02000000, "cgroup"),
        (0x20000000, "pid (for its children)"),
        (0x00000080, "time (for its children)"),
    ],
)
def test_another_namespace_is_named(flag: int, name: str) -> None:
    with alone(CALLS + f"call(272, {flag})") as victim:
        assert sentence(victim.pid, "namespace").startswith(
            f"pid {victim.pid} is in another {name} namespace than migrate."
        )


def test_a_user_namespace_is_named() -> None:
    with alone(CALLS + "call(272, 0x10000000)") as victim:
        assert "is in another user namespace" in sentence(victim.pid, "namespace")


def test_a_thread_in_another_namespace_is_named() -> None:
    arrange = CALLS + (
        "ready = threading.Event()\n"
        "def run():\n    call(272, 0x04000000)\n    ready.set()\n    signal.pause()\n"
        "threading.Thread(target=run, daemon=True).start()\nready.wait()"
    )
    with alone(arrange) as victim:
        thread = procfs.threads(victim.pid)[1]
        assert sentence(victim.pid, "namespace").startswith(
            f"Thread {thread} of pid {victim.pid} is in other namespaces"
        )


def test_a_sandbox_is_not_shed() -> None:
    with alone(CALLS + "libc.prctl(38, 1, 0, 0, 0)") as victim:
        assert "may be confined by Landlock" in sentence(victim.pid, "no_new_privs")
    arrange = CALLS + (
        "allow = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7fff0000))"
        "\nfilter = struct.pack('<HxxxxxxQ', 1, ctypes.addressof(allow))\n"
        "assert libc.prctl(22, 2, filter) == 0"
    )
    with alone(arrange) as victim:
        assert "is confined by seccomp (a filter)" in sentence(victim.pid, "seccomp")


def test_capabilities_without_root_are_refused() -> None:
    arrange = CALLS + "libc.prctl(8, 1, 0, 0, 0)\nos.setresuid(65534, 65534, 65534)"
    with alone(arrange) as victim:
        assert (
            f"pid {victim.pid} of user 65534 has capabilities that come with no user"
            in sentence(victim.pid, "credentials")
        )
    with alone("os.setresuid(65534, 65534, 65534)") as victim:
        assert refusals(victim.pid) == []


def test_several_ids_are_refused() -> None:
    with alone("os.setresgid(0, 65534, 65534)") as victim:
        assert sentence(victim.pid, "credentials").startswith(
            f"pid {victim.pid} has more than one group id (real 0, effective 65534,"
        )


def test_a_thread_with_other_rights_is_named() -> None:
    arrange = CALLS + (
        "ready = threading.Event()\n"
        "def run():\n    libc.prctl(38, 1, 0, 0, 0)\n    ready.set()\n"
        "    signal.pause()\n"
        "threading.Thread(target=run, daemon=True).start()\nready.wait()"
    )
    with alone(arrange) as victim:
        thread = procfs.threads(victim.pid)[1]
        message = sentence(victim.pid, "thread")
        assert message.startswith(f"Thread {thread} (python")
        assert "has other rights than its process" in message


def test_a_root_directory_of_its_own_is_refused(tmp_path: Path) -> None:
    with alone(f"os.chroot({str(tmp_path)!r})") as victim:
        assert str(tmp_path) in " ".join(r.message for r in refusals(victim.pid))


def test_a_controlling_terminal_stays_here() -> None:
    arrange = (
        "import pty, fcntl, termios\nours, theirs = pty.openpty()\n"
        "fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)\nname = os.ttyname(theirs)\n"
        "os.close(theirs)\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    )
    with alone(arrange) as victim:
        reasons = [r for r in refusals(victim.pid) if r.kind == "terminal"]
        (message,) = [r.message for r in reasons if r.fd is None]
        assert f"pid {victim.pid} has a controlling terminal (/dev/pts/" in message


def test_what_another_process_shares_is_refused() -> None:
    arrange = CALLS + (
        "if not call(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0):\n"
        "    libc.prctl(1, 9)\n    signal.pause()"
    )
    with alone(arrange) as victim:
        (child,) = procfs.children(victim.pid)
        for one, other in ((victim.pid, child), (child, victim.pid)):
            (message,) = [
                reason.message
                for reason in refusals(victim.pid)
                if reason.kind == "sharing" and reason.pid == one
            ]
            assert message.startswith(
                f"pid {one} shares its descriptors (CLONE_FILES) with pid {other} ("
            )


def test_descriptors_are_refused_by_their_kinds() -> None:
    arrange = (
        CALLS + "import socket\nkept = socket.socket()\nos.dup2(kept.fileno(), 77)\n"
        "os.dup2(call(447, 0), 78)"
    )
    with alone(arrange) as victim:
        said = {r.fd: r.message for r in refusals(victim.pid)}
        assert said[77].startswith(f"fd 77 of pid {victim.pid} is a socket")
        assert said[78].startswith(f"fd 78 of pid {victim.pid} is")


def test_a_socket_that_leads_out_of_the_tree_is_refused() -> None:
    """Named is who has the other end."""
    arrange = """
import socket
ours, theirs = socket.socketpair()
os.dup2(ours.fileno(), 77)
ours.close()
if not os.fork():
    if os.fork():
        os._exit(0)
    os.dup2(theirs.fileno(), 3)
    os.closerange(0, 3)
    os.closerange(4, 256)
    os.read(3, 1)
    os._exit(0)
os.wait()
theirs.close()
"""
    with alone(arrange) as victim:
        said = {r.fd: r.message for r in refusals(victim.pid)}
        inode = os.stat(f"/proc/{victim.pid}/fd/77").st_ino
        assert said[77].startswith(
            f"fd 77 of pid {victim.pid} is socket:[{inode}], whose other end (socket:["
        )
        assert re.search(r"\]\) pid \d+ has\. ", said[77])


def test_a_socket_with_a_name_is_refused_by_it() -> None:
    arrange = (
        "import socket\nkept = socket.socket(socket.AF_UNIX)\n"
        "kept.bind(f'\\0here-{os.getpid()}')\nkept.listen()\n"
        "os.dup2(kept.fileno(), 77)"
    )
    with alone(arrange) as victim:
        said = {r.fd: r.message for r in refusals(victim.pid)}
        assert f"that listens at @here-{victim.pid}, which" in said[77]


def test_everything_is_said_at_once() -> None:
    arrange = CALLS + (
        "shm = libc.shmget(0, 4096, 0o1600)\nlibc.shmat(shm, None, 0)\n"
        "libc.shmctl(shm, 0, None)\n"
        "call(272, 0x04000000)\nlibc.prctl(38, 1, 0, 0, 0)\n"
        "import socket\nkept = socket.socket()"
    )
    with alone(arrange) as victim:
        before = condition(victim.pid)
        kinds = {reason.kind for reason in refusals(victim.pid)}
        assert {"sysv_shm", "namespace", "no_new_privs"} < kinds
        assert len(kinds) == 4
        assert condition(victim.pid) == before
        assert victim.answers()


def test_a_hostile_name_does_not_reach_the_terminal() -> None:
    arrange = CALLS + (
        "open('/proc/self/comm', 'wb').write(b'\\x1b[31m\\n) R')\n"
        "if not call(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0):\n"
        "    libc.prctl(1, 9)\n    signal.pause()"
    )
    with alone(arrange) as victim:
        for reason in refusals(victim.pid):
            assert r"(\x1b[31m\n) R)" in reason.message
        assert refusals(victim.pid)


def test_a_process_of_another_user_is_not_ours_to_look_at() -> None:
    with alone() as victim:
        assert refusals(victim.pid) == []
        os.seteuid(65534)
        try:
            (reason,) = refusals(victim.pid)
        finally:
            os.seteuid(0)
        assert reason.kind == "rights"
        assert "Run as root, or as the owner of the process." in reason.message


def test_notes_tell_what_will_be_different() -> None:
    with alone(
        CALLS + "assert libc.mlock(ctypes.c_void_p(address()), 4096) == 0"
    ) as own:
        notes = preflight.notes(own.pid)
        assert any("will see it end" in note for note in notes)
        assert any("has locked memory" in note for note in notes)
