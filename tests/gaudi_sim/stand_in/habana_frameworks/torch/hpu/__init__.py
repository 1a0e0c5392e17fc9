"""`torch.hpu`: the cards, and what programs ask of them."""

import contextlib
import os
import time
from types import SimpleNamespace

import torch

from . import graphs, random  # noqa: F401
from .graphs import HPUGraph, ModuleCacher, wrap_in_hpu_graph  # noqa: F401
from .random import (  # noqa: F401
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    set_rng_state,
    set_rng_state_all,
)


NAME = "Gaudi2 simulated on host memory"
device_functions = torch.ops.simulated_gaudi
default_generators = random.default_generators


# ---------------------------------------------------------------------------------------------------------------------
# Cards


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return device_functions.count_cards()


def init() -> None:
    device_functions.acquire()


_lazy_init = init  # PyTorch calls it when the first tensor is made on the card


def is_initialized() -> bool:
    return device_functions.is_acquired()


def current_device() -> int:
    return 0  # a process has one card and calls it so, whichever of the node's it is


def set_device(device) -> None:
    """Changes nothing: a process has one card."""
    index = device if isinstance(device, int) else torch.device(device).index or 0
    if index >= device_count():
        raise RuntimeError(f"invalid device hpu:{index}: simulated Gaudi with {device_count()} cards")


def device(device):
    set_device(device)
    return contextlib.nullcontext()


def get_device_name(device=None) -> str:
    return NAME


def get_device_properties(device=None) -> SimpleNamespace:
    return SimpleNamespace(name=NAME, total_memory=0)


def get_device_capability(device=None) -> str:
    raise NotImplementedError("simulated Gaudi: it has no capability of its own")


def is_bf16_supported() -> bool:
    return os.environ.get("SIMULATED_GAUDI_BF16", "1") != "0"


def synchronize(device=None) -> None:
    """Everything is done when its call returns."""


# ---------------------------------------------------------------------------------------------------------------------
# Memory: what the host lends. There is no device memory, so its limit is 0.


def memory_stats(device=None) -> dict[str, int]:
    return {"Limit": 0, "InUse": memory_allocated(), "MaxInUse": max_memory_allocated()}


def memory_allocated(device=None) -> int:
    return device_functions.bytes_in_use()


def max_memory_allocated(device=None) -> int:
    return device_functions.most_bytes_in_use()


def reset_peak_memory_stats(device=None) -> None:
    device_functions.forget_most_bytes()


memory_reserved = memory_cached = memory_allocated
max_memory_reserved = max_memory_cached = max_memory_allocated
reset_max_memory_allocated = reset_peak_memory_stats


def mem_get_info(device=None) -> tuple[int, int]:
    return 0, 0


def empty_cache() -> None:
    """Nothing is cached."""


# ---------------------------------------------------------------------------------------------------------------------
# Streams and events: one stream, and everything on it has happened


class Stream(torch.Stream):
    def __new__(cls, device=None, priority=0, **kwargs):
        return super().__new__(cls, device="hpu:0", priority=priority)


def current_stream(device=None) -> Stream:
    return Stream()


default_stream = current_stream


def set_stream(stream) -> None:
    """There is one stream."""


def stream(stream):
    return contextlib.nullcontext(stream)


class Event:
    """Measure the time of the host."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self.time = None

    def record(self, stream=None) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds that the host took."""
        return 1000 * (later.time - self.time)

    def query(self) -> bool:
        return True

    def wait(self, stream=None) -> None:
        """It has happened."""

    synchronize = wait


# ---------------------------------------------------------------------------------------------------------------------
# Switches of the compiler and of kernels. The values change nothing here, since nothing is compiled.


def enable_dynamic_shape() -> None:
    """Shapes are always dynamic on the host."""


disable_dynamic_shape = enable_dynamic_shape


def sdp_kernel(enable_recompute: bool = False):
    return contextlib.nullcontext()


def is_autocast_hpu_enabled() -> bool:
    return torch.is_autocast_enabled("hpu")


def get_autocast_hpu_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("hpu")


def __getattr__(name: str):
    raise AttributeError(f"the simulated Gaudi's torch.hpu has no {name!r}")
