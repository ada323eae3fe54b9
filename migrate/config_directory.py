"""Where an operator's decisions about this host lie, and that nobody else made them.

    configuration directory
    ├── identity.pem       our key and certificate, 0600
    ├── agent.toml         limits of the agent
    └── peers.d/NAME.toml  one for each host that is known

For root it is /etc/migrate, for everybody else ``migrate`` below XDG_CONFIG_HOME. What
another user could have written there decides nothing: it is refused.
"""

import os
import stat
from pathlib import Path
from typing import Final

DEFAULT: Final = "/etc/migrate"
VARIABLE: Final = "MIGRATE_CONFIG_DIR"
FILE_BYTES_MAX: Final = 1 << 16  # of one file; peers' files have some hundred


class NotOurs(Exception):
    """Something in it cannot be relied upon; the message is a sentence."""


def path() -> Path:
    """Where it is, whether or not it is there."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path(DEFAULT)
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(home) / "migrate"


def make(folder: Path) -> None:
    """Have it, and write to it.

    Raises:
        NotOurs: it cannot be made, or others may write to it.
    """
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise NotOurs(
            f"{folder} cannot be made: {error.strerror}. Give another place for keys "
            f"and peers in {VARIABLE}."
        ) from error
    require_ours(folder)


def require_ours(folder: Path) -> None:
    """Nobody but us and root may put something there.

    Raises:
        NotOurs: somebody may.
    """
    _require(folder, os.stat(folder), 0o022)


def read_ours(file: Path, *, secret: bool = False) -> str:
    """The text of ``file``, which nobody but us or root can have written; if it is
    ``secret`` nobody else can read it either.

    Raises:
        NotOurs: somebody else may.
        FileNotFoundError: it is not there.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotOurs(f"{file} cannot be read: {error.strerror}.") from error
    with open(fd, "rb") as opened:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise NotOurs(f"{file} is no regular file.")
        _require(file, found, 0o077 if secret else 0o022)
        raw = opened.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise NotOurs(f"{file} is longer than {FILE_BYTES_MAX} bytes.")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise NotOurs(f"{file} is not UTF-8.") from error


def write_ours(file: Path, text: str, *, anew: bool) -> bool:
    """Put ``text`` there, whole or not at all, 0600; with ``anew`` only if nothing is.

    Whether it is there now.
    """
    fresh = file.with_name(f".{file.name}-{os.getpid()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(fd)
        if not anew:
            os.rename(fresh, file)
            return True
        try:
            os.link(fresh, file)
        except FileExistsError:
            return False
        return True
    finally:
        fresh.unlink(missing_ok=True)


def _require(file: Path, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise NotOurs(
            f"{file} belongs to uid {found.st_uid}; it must be ours (uid "
            f"{os.geteuid()}) or root's: chown it."
        )
    if found.st_mode & forbidden:
        raise NotOurs(
            f"{file} has mode {stat.S_IMODE(found.st_mode):04o}, which lets others "
            f"{'read' if forbidden & 0o044 else 'write'} it: "
            f"chmod {'600' if forbidden & 0o044 else 'go-w'} {file}."
        )
