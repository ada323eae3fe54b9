"""A command in a guest, by hand."""

import argparse
import sys
from pathlib import Path

from tests.vm import guest, kernels


def main() -> int:
    """As the shell calls it."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--kernel", choices=kernels.PACKAGES, default="6.12")
    parser.add_argument("--cpu", default="max", help="a model that qemu knows")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=600, metavar="S")
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    done = guest.run(
        kernels.kernel(asked.kernel),
        asked.command,
        folder=Path.cwd(),
        timeout_s=asked.timeout,
        cpu=asked.cpu,
        cpus=asked.cpus,
        memory_mib=asked.memory,
    )
    print(done.output, end="")
    if done.status is None:
        print(f"The guest ended without a word. Its log:\n{done.log}", file=sys.stderr)
        return 125
    return done.status


if __name__ == "__main__":
    sys.exit(main())
