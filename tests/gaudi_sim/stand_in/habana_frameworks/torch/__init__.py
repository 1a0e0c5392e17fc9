"""Load the device on host memory into PyTorch, and the functions that programs expect of Habana's plugin."""

import importlib
import os

import torch


if "SIMULATED_GAUDI_LIBRARY" not in os.environ:
    raise ImportError(
        "this habana_frameworks is the simulated Gaudi's; run through `python -m tests.gaudi_sim`, "
        "or in the environment that tests.gaudi_sim.environment() returns"
    )
torch.ops.load_library(os.environ["SIMULATED_GAUDI_LIBRARY"])

from . import counting, hpu  # noqa: E402


torch._register_device_module("hpu", hpu)
counting.start()

from . import utils  # noqa: E402, F401


def __getattr__(name: str):
    """`core` is loaded when it is first used: GaudiConfig refuses autocast lists once it is there."""
    if name in ("core", "distributed", "hpex"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r} (simulated Gaudi)")
