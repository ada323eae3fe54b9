"""A host of a bed, as its maker holds it; and an agent running there."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, TypeAlias

import migrate
from migrate import config_directory
from migrate.patience import patient
from migrate.state_directory import VARIABLE
from migrate.testbed import keys, wire
from migrate.testbed.errors import TestBedError
from migrate.testbed.process import HostProcess, wait_exit

Argument: TypeAlias = str | bytes | os.PathLike[str]
# DEVNULL, PIPE or STDOUT of subprocess; a descriptor; an open file; or the path of a
# file, which is opened inside the host.
Stdio: TypeAlias = int | IO[bytes] | IO[str] | os.PathLike[str]

_HANGS_S: Final = patient(90.0)
_LISTENING: Final = re.compile(r"listening on (\S+):(\d+)")


class Host:
    """One host; made by TestBed.host().

    Attributes:
        name: also its host name.
        address: its IPv4 address on the bridge of the bed.
        pid: its process 1, as the maker sees it.
        cgroup: the directory of the cgroup in which all its processes live.
    """

    def __init__(
        self,
        keeper: socket.socket,
        name: str,
        address: str,
        *,
        prefix_bits: int,
        pid_first: int,
        private: Sequence[str],
        shared: Sequence[str],
    ) -> None:
        self.name: Final = name
        self.address: Final = address
        self._keeper = keeper
        self._agents: list[Agent] = []
        request = wire.AddHost(
            name,
            address,
            prefix_bits,
            pid_first,
            [os.fsencode(path) for path in private],
            [os.fsencode(path) for path in shared],
        )
        self._requests, theirs = wire.pair()
        with theirs, ExitStack() as on_failure:
            on_failure.push(self._requests)
            added, _ = wire.ask(keeper, request, wire.HostAdded, [theirs.fileno()])
            on_failure.pop_all()
        self.pid: Final = added.pid
        self.cgroup: Final = Path(os.fsdecode(added.cgroup))

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    def popen(
        self,
        argv: Sequence[Argument],
        *,
        stdin: Stdio = subprocess.DEVNULL,
        stdout: Stdio = subprocess.DEVNULL,
        stderr: Stdio = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: Argument = "/",
        new_session: bool = True,
    ) -> HostProcess:
        """Start a command inside, as a child of the host's init.

        Unlike subprocess, nothing is inherited unless asked for, so that the command
        holds nothing from outside the host: its stdio is /dev/null.

        Raises:
            TestBedError: it could not be started.
        """
        with ExitStack() as theirs:
            fds: list[int] = []
            ours: list[IO[bytes] | None] = []
            entries: list[bytes | int] = []
            for number, stdio in enumerate((stdin, stdout, stderr)):
                entry, end = _stdio(stdio, fds, theirs, writing=number > 0)
                entries.append(entry)
                ours.append(end)
            environment = _with_own_state(os.environ if env is None else env)
            request = wire.Spawn(
                [os.fsencode(argument) for argument in argv],
                {
                    os.fsencode(name): os.fsencode(value)
                    for name, value in environment.items()
                },
                os.fsencode(cwd),
                new_session,
                (entries[0], entries[1], entries[2]),
            )
            try:
                process = self._process(request, fds)
            except TestBedError as e:
                for end in ours:
                    if end is not None:
                        end.close()
                command = os.fsdecode(argv[0])
                raise TestBedError(
                    f"The host {self.name} cannot start {command}: {e}"
                ) from e
        process.stdin, process.stdout, process.stderr = ours
        return process

    def run(
        self,
        argv: Sequence[Argument],
        *,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Argument = "/",
        on_hang: Callable[[HostProcess], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end, with its output as text.

        ``on_hang`` is called, on a thread of its own, when it takes longer than what
        will ever end; it is to end it.

        Raises:
            CalledProcessError: ``check`` is set and it did not exit with 0.
        """
        pipe = subprocess.PIPE
        with self.popen(argv, stdout=pipe, stderr=pipe, env=env, cwd=cwd) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            errors = _Log(process.stderr)
            with _watched(process, on_hang):
                stdout = process.stdout.read().decode(errors="replace")
                errors.wait_for_end()
                code = process.wait()
            done = subprocess.CompletedProcess(list(argv), code, stdout, errors.text)
        if check:
            done.check_returncode()
        return done

    def process(self, pid_inside: int) -> HostProcess:
        """A handle of a process of this host, for instance of one that arrived."""
        return self._process(wire.Find(pid_inside))

    def wait_exit(self, pid_inside: int, timeout_s: float | None = None) -> int:
        """Wait until init has reaped ``pid_inside``; a signal counts negative.

        Each exit is told once, the oldest first, whether it is asked for here or by
        HostProcess.wait(); starting a command forgets what was never asked for under
        its pid.

        Raises:
            TimeoutError: it still runs, or is not a child of init.
        """
        return wait_exit(self._requests, pid_inside, timeout_s)

    def exits(self) -> list[tuple[int, int]]:
        """All that init has reaped so far, in order: pid inside and wait status."""
        answer, _ = wire.ask(self._requests, wire.ListExits(), wire.Exits)
        return [(exited.pid, exited.status) for exited in answer.exits]

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
    ) -> socket.socket:
        """A socket in the network namespace of this host, for the maker to use."""
        request = wire.OpenSocket(int(family), int(kind))
        _, packet = wire.ask(self._requests, request, wire.Done)
        return socket.socket(fileno=packet.fds[0])

    def agent(
        self,
        *options: str,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        module: str = "migrate",
    ) -> "Agent":
        """Start ``migrate agent`` here, and wait until it listens.

        Raises:
            TestBedError: it ended instead; what it said.
        """
        # The folder of the packages we run, whatever the host's working directory.
        ours = str(Path(migrate.__file__).parents[1])
        environment = dict(os.environ if env is None else env)
        paths = [ours, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        process = self.popen(
            [
                *(sys.executable, "-m", module, "agent"),
                *("--listen", f"{self.address}:{port}"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            agent = Agent(process)
        except TestBedError:
            process.close()
            raise
        self._agents.append(agent)
        return agent

    def close(self) -> None:
        """Take the host away at once, as if its power were cut.

        Raises:
            TestBedError: something in it would not die.
        """
        try:
            wire.ask(self._keeper, wire.RemoveHost(self.name), wire.Done)
        finally:
            self.forget()

    def forget(self) -> None:
        """Give back what the maker holds of a host that is gone."""
        self._requests.close()
        for agent in self._agents:
            agent.process.close()
        self._agents.clear()

    def _process(
        self, request: wire.Spawn | wire.Find, fds: Sequence[int] = ()
    ) -> HostProcess:
        found, packet = wire.ask(self._requests, request, wire.Found, fds)
        return HostProcess(self._requests, packet, found)


@contextmanager
def _watched(
    process: HostProcess, on_hang: Callable[[HostProcess], None] | None
) -> Iterator[None]:
    if on_hang is None:
        yield
        return
    watch = threading.Timer(_HANGS_S, on_hang, [process])
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        watch.join()


def _with_own_state(env: Mapping[str, str]) -> Mapping[str, str]:
    """Our own directories are not for a host; /run is private there."""
    theirs = {VARIABLE: "/run/migrate", config_directory.VARIABLE: keys.FOLDER}
    for name in tuple(theirs):
        if env.get(name) != os.environ.get(name):
            del theirs[name]
    return {**env, **theirs}


class Agent:
    """``migrate agent`` running in a host.

    Attributes:
        address, port: where it listens.
        process: stops with the host at the latest.
    """

    def __init__(self, process: HostProcess) -> None:
        assert process.stdout is not None
        self.process: Final = process
        self._log = _Log(process.stdout)
        match = self._log.wait_for(_LISTENING)
        if match is None:
            raise TestBedError(f"The agent ended before it listened: {self.log}")
        self.address: Final = match[1]
        self.port: Final = int(match[2])

    @property
    def log(self) -> str:
        """What it and its children have written so far."""
        return self._log.text

    def stop(self) -> int:
        """Tell it to stop, and wait; what it ended with."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


class _Log:
    """Reads a pipe to its end on its own thread, so that its writers never wait."""

    def __init__(self, source: IO[bytes]) -> None:
        self._text = bytearray()
        self._grew = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._reader.start()

    def _read(self, source: IO[bytes]) -> None:
        while True:
            try:
                chunk = os.read(source.fileno(), 1 << 16)
            except (OSError, ValueError):
                chunk = b""  # it was closed at our end
            with self._grew:
                self._text += chunk
                self._ended = not chunk
                self._grew.notify_all()
            if not chunk:
                return

    @property
    def text(self) -> str:
        with self._grew:
            return self._text.decode(errors="replace")

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Wait for a line that matches; None if all was read without one."""
        with self._grew:
            while True:
                whole_lines = self._text[: self._text.rfind(b"\n") + 1]
                match = pattern.search(whole_lines.decode(errors="replace"))
                if match is not None or self._ended:
                    return match
                self._grew.wait()

    def wait_for_end(self) -> None:
        self._reader.join()


def _stdio(
    stdio: Stdio, fds: list[int], theirs: ExitStack, *, writing: bool
) -> tuple[bytes | int, IO[bytes] | None]:
    """How the init is told of it, and our end of a pipe.

    Adds to ``fds`` what has to be sent along.
    """
    if stdio == subprocess.DEVNULL:
        return b"/dev/null", None
    if stdio == subprocess.STDOUT:
        return wire.AS_STDOUT, None
    if isinstance(stdio, os.PathLike):
        return os.fsencode(os.path.abspath(stdio)), None
    if stdio == subprocess.PIPE:
        read_end, write_end = os.pipe()
        own, other = (read_end, write_end) if writing else (write_end, read_end)
        theirs.callback(os.close, other)
        fds.append(other)
        return len(fds) - 1, os.fdopen(own, "rb" if writing else "wb")
    fds.append(stdio if isinstance(stdio, int) else stdio.fileno())
    return len(fds) - 1, None
