"""``python -m migrate``, and the ``migrate`` command."""

import sys


def main() -> None:
    """Run the command line; the exit code says how it ended."""
    from migrate.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
