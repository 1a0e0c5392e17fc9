"""The variables of Habana's plugin that follow from the flags of a run, set before the plugin is loaded and reads them."""

import argparse
import importlib.util
import os

from qa.command_line import read_bool
from qa.gaudi_flags import compiles
from qa.recipe_cache import set_recipe_cache


class QuietParser(argparse.ArgumentParser):
    """A parser that never prints and exits: not for an ambiguous option either, which `exit_on_error` leaves as it is."""

    def error(self, message: str):
        raise argparse.ArgumentError(None, message)


def set_gaudi_variables(argv: list[str]) -> tuple[list[str], tuple[int, str] | None]:
    """Set the variables of a run on a Gaudi; return its command line, to which flags may be added, and a line with its level.

    Nothing is set, and there is no line, for other devices and for a command line that the script's own parser refuses.
    """
    given = early_flags(argv)
    if given is None or not given.use_habana:
        return argv, None
    argv = resolve_lazy_mode(argv, given)
    plugin = importlib.util.find_spec("habana_frameworks")
    return argv, None if plugin is None else set_recipe_cache(given.recipe_cache)


def early_flags(argv: list[str]) -> argparse.Namespace | None:
    """Return the flags that decide about the variables, None where they cannot be read."""
    parser = QuietParser(add_help=False, exit_on_error=False)
    for flag in ("use_habana", "use_lazy_mode", "torch_compile"):
        parser.add_argument(f"--{flag}", type=read_bool, nargs="?", const=True)
    for flag in ("torch_compile_backend", "torch_compile_mode", "recipe_cache"):
        parser.add_argument(f"--{flag}")
    try:
        return parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        return None


def resolve_lazy_mode(argv: list[str], given: argparse.Namespace) -> list[str]:
    """Set PT_HPU_LAZY_MODE by the command line, or --use_lazy_mode by the variable; return the command line.

    The variable's default was 1 up to SynapseAI 1.18 and is 0 since. optimum-habana 1.21.2 assumes 1, and lazy mode as
    the flag's default. Here, where one of the two is given the other follows. Without either, a run is lazy unless it
    compiles. `lazy_problems` reports a contradiction.
    """
    lazy = not compiles(given) if given.use_lazy_mode is None else given.use_lazy_mode
    variable = os.environ.setdefault("PT_HPU_LAZY_MODE", str(int(lazy)))
    return argv if given.use_lazy_mode is not None else [*argv, f"--use_lazy_mode={variable != '0'}"]
