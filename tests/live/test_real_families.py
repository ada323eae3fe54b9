"""Families that nobody wrote for us: moved in mid-work, their result is the same."""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from migrate.kernel import lineage
from migrate.testbed import Host, HostProcess
from precopy.ids import Pid
from tests.live.journey import Road, road
from tests.live.stage import eventually

FILES = 4
FILE_BYTES = 1 << 20
SOURCES = 8
# More by hand: the closing figures were made with ten.
TIMES = int(os.environ.get("MIGRATE_TEST_REPEAT", "1"))

TARGETS = Path(__file__).parent / "targets"

# They work until somebody makes the file, however fast or slow the machine is; and
# the shell that waits for it starts and ends a child each time that it looks.
WAIT = "until [ -e {go} ]; do sleep 0.02; done"
PIPELINE = (
    "(tar --sort=name -c files; "
    + WAIT.format(go="go.$1")
    + "; tar --sort=name -c files) | zstd -q -3 -T1 | tee packed.$1 | "
    "sha256sum > sum.$1; echo $? > status.$1"
)
MAKEFILE = """
OBJECTS = $(patsubst %,$(OUT)/%.o,$(shell seq {files}))
$(OUT)/program: $(OBJECTS)
\tgcc -o $@ $^
$(OUT)/%.o: file-%.c
\tgcc -pipe -O2 -c -o $@ $<
\t{wait}
""".format(files=SOURCES, wait=WAIT.format(go="$(OUT)/go"))
FUNCTION = """
unsigned f{n}_{k}(unsigned *a, unsigned k) {{
    unsigned s = {n};
    for (unsigned i = 0; i < k; i++) {{
        s = s * 31 + a[i] ^ (s >> {k} % 31);
        if (s % 7 == {n} % 7)
            a[i] = s + i;
        switch (s & 3) {{ case 0: s++; break; case 1: a[k - i] ^= s; break; }}
    }}
    return s;
}}"""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that both hosts see."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "files").mkdir()
    chance = random.Random(7)
    words = [f"{chance.getrandbits(40):x}" for _ in range(5000)]
    for n in range(FILES):
        text = " ".join(chance.choices(words, k=FILE_BYTES // 11))
        (folder / "files" / f"{n}").write_text(text)
    return folder


@pytest.fixture(scope="module")
def between(material: Path) -> Iterator[Road]:
    """Two hosts for all tests here."""
    with road(material) as made:
        yield made


def started(host: Host, folder: Path, *command: str) -> HostProcess:
    """The command, at the lowest priority: so the move comes before its end."""
    with (folder / "said").open("ab") as said:
        return host.popen(
            ["nice", "-n19", "env", f"TMPDIR={folder}", *command],
            stdout=said,
            stderr=said,
            cwd=folder,
        )


def moved_in_mid_work(
    between: Road, process: HostProcess, members: int, go: Path
) -> None:
    """Move it, let it go on, and wait for its end over there."""
    eventually(
        lambda: len(lineage.family(Pid(process.pid))) >= members, "all have begun"
    )
    moved(between, process, go)


def moved(between: Road, process: HostProcess, go: Path) -> None:
    """Move it as it is now, let it go on, and wait for its end over there."""
    with process:
        report = between.move(process.pid_inside, between.a, between.b).arrived()
        assert process.wait() == -9
    go.touch()
    pid = report.processes[0].destination_pid
    assert pid is not None
    assert between.b.wait_exit(pid, 60) == 0


@pytest.mark.parametrize("run", range(TIMES))
def test_a_pipeline_under_a_shell(between: Road, material: Path, run: int) -> None:
    process = started(between.a, material, "sh", "-c", PIPELINE, "sh", f"{run}")
    moved_in_mid_work(between, process, 5, material / f"go.{run}")
    packed = (material / f"packed.{run}").read_bytes()
    said = (material / f"sum.{run}").read_text().split()[0]
    assert hashlib.sha256(packed).hexdigest() == said
    assert (material / f"status.{run}").read_text() == "0\n"
    once = subprocess.run(
        ["tar", "--sort=name", "-c", "files"],
        cwd=material,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    unpacked = subprocess.run(
        ["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True
    ).stdout
    assert unpacked == once + once


@pytest.mark.parametrize("run", range(TIMES))
def test_a_build_makes_its_program(between: Road, material: Path, run: int) -> None:
    (material / "Makefile").write_text(MAKEFILE)
    for n in range(1, SOURCES + 1):
        functions = [FUNCTION.format(n=n, k=k) for k in range(5)]
        main = "int main(void) { return 0; }" if n == 1 else ""
        (material / f"file-{n}.c").write_text("\n".join([*functions, main]))
    out = material / f"out.{run}"
    out.mkdir()
    process = started(between.a, material, "make", "-s", "-j2", f"OUT=out.{run}")
    moved_in_mid_work(between, process, 4, out / "go")
    assert subprocess.run([str(out / "program")], check=False).returncode == 0


def at_work_elsewhere(
    between: Road, folder: Path, command: Sequence[str], name: str
) -> str:
    """What a program says in the end that was moved while it worked.

    It is told three files: which ends it, which it opens when all have begun (a FIFO),
    and which it writes.
    """
    go, begun, result = (
        folder / f"{name}.{what}" for what in ("go", "begun", "result")
    )
    os.mkfifo(begun)
    with (folder / "said").open("ab") as said:
        process = between.a.popen(
            [*command, str(go), str(begun), str(result)],
            stdout=said,
            stderr=said,
            cwd=folder,
        )
    begun.read_bytes()
    moved(between, process, go)
    return result.read_text()


def program(name: str) -> str:
    """Where it is, or skip."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on this machine")
    return found


@pytest.mark.parametrize("run", range(TIMES))
def test_perl_with_children_and_a_timer(
    between: Road, material: Path, run: int
) -> None:
    command = [program("perl"), str(TARGETS / "family.pl")]
    said = at_work_elsewhere(between, material, command, f"perl.{run}")
    assert said == "0 wrong, codes 1 2 3, 3 ended, ticked\n"


@pytest.mark.parametrize("run", range(TIMES))
def test_node_with_children_and_timers(between: Road, material: Path, run: int) -> None:
    """Its children's standard input and output are unix socket pairs."""
    command = [program("node"), str(TARGETS / "family.js")]
    said = at_work_elsewhere(between, material, command, f"node.{run}")
    assert said == "0 wrong, codes 1 2, ticked\n"


@pytest.mark.parametrize("run", range(TIMES))
def test_a_java_machine_with_threads(between: Road, material: Path, run: int) -> None:
    java, compiler = program("java"), program("javac")
    classes = material / f"classes.{run}"
    subprocess.run(
        [compiler, "-d", str(classes), str(TARGETS / "Family.java")], check=True
    )
    # Else it maps a file of its /tmp, which is not there at the other host.
    command = [java, "-XX:+PerfDisableSharedMem", "-Xmx64m", "-cp", str(classes)]
    said = at_work_elsewhere(between, material, [*command, "Family"], f"java.{run}")
    assert said == "0 wrong, all seen, ticked\n"
