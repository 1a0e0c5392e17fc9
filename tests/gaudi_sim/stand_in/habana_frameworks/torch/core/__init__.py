"""`habana_frameworks.torch.core`: the boundaries of lazy mode."""

import torch

from .. import counting, hpu


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """In lazy mode the end of what is compiled as one; in eager mode it does nothing on a card either."""
    if torch.compiler.is_compiling():  # a count that a graph depends on would compile it again in every step
        return
    counting.counters["mark_steps" if counting.is_lazy() else "mark_steps_ignored"] += 1


def hpu_set_env(*args, **kwargs) -> None:
    raise NotImplementedError("simulated Gaudi: hpu_set_env prepares quantization, which is not simulated")


hpu_initialize = hpu_set_env
set_device = hpu.set_device
