"""Checks of a Gaudi node: whether optimum-habana can run here, and what prevents a run."""

import importlib.util
import logging
import os
import re
import subprocess
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path

import torch
from packaging.version import Version

import qa.upstream  # noqa: F401  before PyTorch
from qa.errors import UserError, in_one_line
from qa.gaudi_flags import compiles


logger = logging.getLogger(__name__)


OLDEST_OPTIMUM_HABANA = "1.21.0"


HPU_GRAPH_FLAGS = ("use_hpu_graphs", "use_hpu_graphs_for_inference", "use_hpu_graphs_for_training")


NOWHERE = open(os.devnull, "w")  # never closed: libraries keep it, DeepSpeed 0.19.8 for its log


# The beginning of the device files of Habana's driver, one for each card.
CARDS = "/dev/accel/accel"


@contextmanager
def quiet_imports():
    """Discard what optimum-habana and Habana's plugin print while they are imported: which kernels they do not find."""
    with redirect_stdout(NOWHERE):
        yield


@cache
@quiet_imports()
def why_no_gaudi() -> str | None:
    """Return why optimum-habana cannot run here, None where it can; load Habana's plugin, which registers the device."""
    if importlib.util.find_spec("habana_frameworks") is None:
        return "Habana's PyTorch plugin (habana_frameworks) is not installed in this Python"
    try:
        import habana_frameworks.torch.hpu as hpu
    except (ImportError, OSError) as error:
        return (
            f"Habana's PyTorch plugin cannot be loaded into PyTorch {torch.__version__} ({one_line(error)}); if pip has "
            "replaced the PyTorch of the image, which is built for Habana, start from a fresh image"
        )
    if not hpu.is_available() or hpu.device_count() == 0:
        return "Habana's PyTorch plugin sees no card (`hl-smi` shows which are there and who uses them)"
    try:
        import optimum.habana  # noqa: F401
    except (ImportError, IndexError) as error:  # its version check takes the first line of `pip list | grep`
        return (
            f"optimum-habana cannot be imported ({one_line(error)}); `pip list` in this shell must show it and "
            "habana-torch-plugin, so `pip` and `python` have to be of the same installation"
        )
    return None


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error, most=200)}"


def gaudi_is_usable() -> bool:
    """Return whether optimum-habana can run here."""
    return why_no_gaudi() is None


def lazy_problems(training_args) -> list[str]:
    """Return contradictions between PT_HPU_LAZY_MODE, --use_lazy_mode and --torch_compile."""
    variable = os.environ.get("PT_HPU_LAZY_MODE")
    if compiles(training_args):
        if training_args.use_lazy_mode or variable != "0":
            return ["--torch_compile does not go with lazy mode: set PT_HPU_LAZY_MODE=0 and --use_lazy_mode false"]
    elif training_args.use_lazy_mode != (variable != "0"):
        return [
            f"PT_HPU_LAZY_MODE={variable} contradicts --use_lazy_mode {training_args.use_lazy_mode}: set it to "
            f"{int(training_args.use_lazy_mode)}, or unset it, and it follows the flags"
        ]
    elif not training_args.use_lazy_mode and any(getattr(training_args, flag) for flag in HPU_GRAPH_FLAGS):
        return [f"PT_HPU_LAZY_MODE={variable}: HPU graphs need lazy mode (1, with --use_lazy_mode) or --torch_compile"]
    return []


def gaudi_problems(training_args) -> list[str]:
    """Return what prevents a run with `--use_habana`, as far as it shows at once."""
    problems = lazy_problems(training_args)
    missing = why_no_gaudi()
    if missing is not None:
        advice = "Run inside Habana's PyTorch image on a Gaudi node, or omit --use_habana"
        return [f"--use_habana: {missing}. {advice} to run on this machine's GPU or CPU.", *problems]
    problems += [*version_problems(), *card_problems()]
    busy = why_busy()
    if busy is not None:
        problems.append(busy)
    elif training_args.bf16 and not bf16_is_supported():
        problems.append("--bf16: this card does not support it; omit it")
    if training_args.gaudi_config_name is not None:
        try:
            read_gaudi_config(training_args.gaudi_config_name)
        except UserError as error:
            problems += error.problems
    return problems


def card_problems() -> list[str]:
    """Compare the ranks of this node with its cards."""
    import habana_frameworks.torch.hpu as hpu

    ranks, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), hpu.device_count()
    too_many = f"--use_habana: {ranks} ranks on this node, but PyTorch sees {cards} Gaudi cards; start at most {cards}"
    return [too_many] if ranks > cards else []


def version_problems() -> list[str]:
    """Return versions that do not fit together; log a warning of those that may not."""
    from packaging.requirements import Requirement

    habana = version("optimum-habana")
    problems = [
        f"transformers {version('transformers')} is installed, but optimum-habana {habana} needs {needed.specifier}: "
        "pip install -r requirements.txt"
        for needed in map(Requirement, requires("optimum-habana"))
        if needed.name == "transformers" and not needed.specifier.contains(version("transformers"))
    ]
    if Version(habana) < Version(OLDEST_OPTIMUM_HABANA):
        problems.append(
            f"optimum-habana {habana} is installed, but these scripts need {OLDEST_OPTIMUM_HABANA} or newer: "
            "pip install -r requirements.txt"
        )
    driver, plugin = driver_version(), Version(version("habana-torch-plugin"))
    if driver is not None and driver.release[:2] != plugin.release[:2]:
        logger.warning(
            f"Habana's driver is {driver}, its PyTorch plugin {plugin}: they should be of one release. "
            "Update the driver of the node, or use the image of its release"
        )
    return problems


def driver_version() -> Version | None:
    """Return the version of Habana's driver on this node, as `hl-smi` prints it."""
    try:
        printed = subprocess.run(["hl-smi"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"Driver Version:\s*(\d+(?:\.\d+)+)", printed)
    return Version(found[1]) if found else None


def why_busy() -> str | None:
    """Try to take a card and return why it fails: other processes hold them all. Ranks of a job take theirs later."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return None
    try:
        torch.zeros(1, device="hpu")
    except RuntimeError as error:
        holders = ", ".join(processes_at(CARDS)) or "`hl-smi` shows by whom"
        return f"--use_habana: no card can be taken ({one_line(error)}); held by: {holders}"
    return None


def processes_at(devices: str) -> list[str]:
    """Return the other processes that have a device open whose path begins with `devices`, where this user may see."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parts[2]
        try:
            if process != str(os.getpid()) and os.readlink(link).startswith(devices):
                words = (Path("/proc") / process / "cmdline").read_bytes().split(b"\0")
                found[process] = f"process {process} ({b' '.join(words[:2]).decode(errors='replace')})"
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return list(found.values())


def bf16_is_supported() -> bool:
    import habana_frameworks.torch.hpu as hpu

    return not hasattr(hpu, "is_bf16_supported") or hpu.is_bf16_supported()


def read_gaudi_config(name: str, **hub):
    """Return the Gaudi configuration of that name; a UserError where there is none (optimum-habana: a traceback)."""
    from optimum.habana import GaudiConfig

    try:
        return GaudiConfig.from_pretrained(name, **hub)
    except (OSError, ValueError) as error:
        raise UserError(f"--gaudi_config_name {name}: no gaudi_config.json can be read ({one_line(error)})") from error
