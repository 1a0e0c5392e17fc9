"""The one way a user's mistake ends: a line or two on stderr and exit status 2."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """What the user asked for cannot be done; `problems` says why, one line each, and what to do."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def run_or_exit(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` becomes its problems on stderr and exit status 2, without a traceback."""
    try:
        main()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
