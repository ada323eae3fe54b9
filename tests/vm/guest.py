"""A throw-away machine that runs one command on a kernel of our choice.

It sees this machine's files read-only at the same paths, with nothing in /tmp,
/var/tmp, /var/lib, /run and /dev/shm, and is emulated in software: about fifteen times
slower than the real thing (so many tests go into one boot), and of any CPU.
"""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from migrate.patience import VARIABLE as PATIENCE
from tests.vm.initramfs import initramfs
from tests.vm.kernels import CannotHave, Kernel

_PR_SET_PDEATHSIG: Final = 1
_LOG_LINES: Final = 40

# The kernel's own: no quarrel about clocks under emulation, and end instead of hang.
_KERNEL_OPTIONS: Final = (
    "console=ttyS0 loglevel=4 panic=-1 oops=panic random.trust_cpu=on mitigations=off "
    "no_timer_check tsc=reliable net.ifnames=0"
)

_MAIN: Final = """\
b=/run/busybox
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
$b mount -t tmpfs -o mode=1777 shm /dev/shm
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b ln -s /proc/self/fd /dev/fd
$b ip link set lo up
echo 128M >/sys/block/zram0/disksize
$b mkswap /dev/zram0 >/dev/null
$b swapon /dev/zram0
cd {folder}
$b env -i {environment} $b setsid {command} </dev/null >/run/job/output 2>&1
echo $? >/run/job/status
$b sync
$b reboot -f
"""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command in a guest ended."""

    status: int | None  # its exit status; None if the guest ended before it did
    output: str  # stdout and stderr, as they came
    log: str  # the end of what the guest's kernel said


def run(
    kernel: Kernel,
    command: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    cpu: str = "max",
    cpus: int = 2,
    memory_mib: int = 1024,
) -> Done:
    """Boot ``kernel``, run ``command`` in ``folder`` as root, and take it all away.

    Raises:
        CannotHave: there is no emulator here.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise CannotHave("guests need an emulator (Debian: qemu-system-x86)")
    with tempfile.TemporaryDirectory(prefix="migrate-guest-") as scratch:
        job = Path(scratch)
        share = job / "share"
        share.mkdir()
        (job / "initramfs").write_bytes(initramfs(kernel))
        (share / "main").write_text(
            _MAIN.format(
                folder=shlex.quote(str(folder)),
                environment=shlex.join(_environment()),
                command=shlex.join(command),
            )
        )
        _boot(
            [qemu, *_machine(cpu, cpus, memory_mib), *_software(kernel, job)],
            job / "complaints",
            timeout_s,
        )
        status = _text(share / "status").strip()
        return Done(
            status=int(status) if status else None,
            output=_text(share / "output"),
            log=_end_of(_text(job / "complaints") + _text(job / "log")),
        )


def _environment() -> list[str]:
    """Ours, but for what leads to places that the guest cannot write to."""
    ours = {
        **{name: value for name, value in os.environ.items() if "\n" not in value},
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        PATIENCE: "20",
    }
    return [f"{name}={value}" for name, value in ours.items()]


def _machine(cpu: str, cpus: int, memory_mib: int) -> list[str]:
    return [
        *("-machine", "pc,usb=off,vmport=off,hpet=off", "-nodefaults"),
        *("-no-user-config", "-no-reboot", "-display", "none"),
        *("-accel", "tcg,thread=multi", "-smp", str(cpus), "-m", str(memory_mib)),
        # qemu 7.2 emulates cmpxchg16b wrongly now and then, and some kernels die of it
        # in their allocator; without the flag no kernel uses it.
        *("-cpu", f"{cpu},cx16=off"),
        *("-device", "virtio-rng-pci"),
    ]


def _software(kernel: Kernel, job: Path) -> list[str]:
    return [
        *("-kernel", str(kernel.image), "-initrd", str(job / "initramfs")),
        *("-append", _KERNEL_OPTIONS, "-serial", f"file:{job / 'log'}"),
        *_folder("host", Path("/"), ",readonly=on"),
        *_folder("job", job / "share", ""),
    ]


def _folder(tag: str, path: Path, how: str) -> list[str]:
    backend = f"local,id={tag},path={path},security_model=none,multidevs=remap{how}"
    device = f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    return ["-fsdev", backend, "-device", device]


def _boot(command: Sequence[str], complaints: Path, timeout_s: float) -> None:
    """Run the machine until it ends, or its time is up."""
    with complaints.open("wb") as log:
        machine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_the_parent,
        )
    try:
        machine.wait(timeout_s)
    except subprocess.TimeoutExpired:
        pass  # what it said until now is all there is
    finally:
        machine.kill()
        machine.wait()


def _die_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _end_of(text: str) -> str:
    return "\n".join(text.splitlines()[-_LOG_LINES:])
