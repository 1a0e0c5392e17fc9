"""`python -m tests.gaudi_sim script.py ...`: runs a script, or `-m module`, on the simulated Gaudi."""

import os
import sys

from . import CannotBuild, environment


def main(argv: list[str]) -> None:
    if not argv:
        sys.exit("usage: python -m tests.gaudi_sim {script.py | -m module} [arguments]")
    busy = int(os.environ.get("SIMULATED_GAUDI_BUSY", 0))
    try:
        made = environment(busy=busy)
    except CannotBuild as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    made["SIMULATED_GAUDI_MAIN"] = str(os.getpid())  # the same process goes on
    os.execve(sys.executable, [sys.executable, *argv], made)


if __name__ == "__main__":
    main(sys.argv[1:])
