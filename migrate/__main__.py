"""``python -m migrate``, and the ``migrate`` command."""

import sys


def main() -> None:
    """Run the command line; the exit code says how it ended."""
    if sys.argv[1:2] == ["arrive"]:
        # Only the agent says this, and a source waits for it: no detours.
        from migrate import worker

        sys.exit(worker.main(sys.argv[2:]))
    if sys.argv[1:2] == ["depart"]:
        # And this: for a user of its host.
        from migrate import local_departure

        sys.exit(local_departure.main(sys.argv[2:]))
    from migrate import cli

    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
