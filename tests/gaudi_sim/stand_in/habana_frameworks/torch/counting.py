"""Count what a run exercised, and print it when the process ends."""

import atexit
import json
import os
import sys
from collections import Counter

import torch


counters = Counter()  # how often what happened: the names of `counts`
shapes = {"train": set(), "eval": set(), "generate": set()}  # what the model was called with
call_module = torch.nn.Module.__call__
RECIPE_CACHE = os.environ.get("PT_HPU_RECIPE_CACHE_CONFIG")  # when the plugin is loaded


class Calls:
    """Whether a model's call is under way: the models within it are parts, not calls of their own."""

    under_way = False


def is_lazy() -> bool:
    """Lazy mode, which SynapseAI 1.24 no longer has by default."""
    return os.environ.get("PT_HPU_LAZY_MODE", "0") == "1"


def counts() -> dict:
    """Return what this process exercised so far."""
    seen = {phase: len(keys) for phase, keys in shapes.items()}
    return {
        "device": "simulated Gaudi",
        "pid": os.getpid(),
        "rank": int(os.environ.get("RANK", 0)),
        "lazy": is_lazy(),
        "recipe_cache": RECIPE_CACHE,
        "ops": torch.ops.simulated_gaudi.operations(),
        "mark_steps": counters["mark_steps"],
        "mark_steps_ignored": counters["mark_steps_ignored"],
        "graph_wraps": counters["graph_wraps"],
        "graph_captures": counters["graph_captures"],
        "graph_replays": counters["graph_replays"],
        "compiles": counters["compiles"],
        "symbolic_graphs": counters["symbolic_graphs"],
        "collectives": torch.ops.simulated_gaudi.collectives(),
        "input_shapes": {**seen, "all": sum(seen.values())},
    }


def start() -> None:
    torch.nn.Module.__call__ = counted_call
    atexit.register(report)


def counted_call(self, *args, **kwargs):
    """Record, in place of `Module.__call__`, the shapes that a model's outermost call has.

    It is here and not in a hook on the models because DDP, DeepSpeed, HPU graphs and `torch.compile` all end in
    such a call, whichever of them wraps which. While `torch.compile` traces, nothing is counted.
    PyTorch's profiler reads the argument `self` of whatever is `Module.__call__`, by this name.
    """
    if torch.compiler.is_compiling() or Calls.under_way or not is_model(self):
        return call_module(self, *args, **kwargs)
    Calls.under_way = True
    try:
        note_shapes(self, args, kwargs)
        return call_module(self, *args, **kwargs)
    finally:
        Calls.under_way = False


def is_model(module) -> bool:
    modeling = sys.modules.get("transformers.modeling_utils")
    return isinstance(model_of(module), getattr(modeling, "PreTrainedModel", ()))


def model_of(module):
    """Return the compiled model without DDP, whose parts are called only while tracing."""
    compiled = getattr(module, "_orig_mod", module)
    if compiled is not module and isinstance(compiled, torch.nn.parallel.DistributedDataParallel):
        return compiled.module
    return compiled


def note_shapes(model, args, kwargs) -> None:
    """Add the call's shapes, if it runs on the card: each would be a compilation on a real one."""
    leaves = [(f"{place}", value) for place, value in enumerate(args)] + sorted(kwargs.items())
    tensors = [(name, tensor) for name, value in leaves for tensor in tensors_in(value)]
    if any(tensor.device.type == "hpu" for _, tensor in tensors):
        phase = "train" if model.training else "generate" if is_generating() else "eval"
        key = tuple((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors)
        shapes[phase].add((type(model_of(model)).__name__, *key))


def tensors_in(value) -> list[torch.Tensor]:
    """Return the tensors of an argument: itself, or those in a list, tuple or dict (of such)."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def is_generating() -> bool:
    """Return whether a `generate` is among the callers: a decode step is not an input of the user's."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "generate":
            return True
        frame = frame.f_back
    return False


def line() -> str:
    """Return the counts in one line."""
    now = counts()
    ignored = f" ({now['mark_steps_ignored']} ignored: eager mode)" if now["mark_steps_ignored"] else ""
    symbolic = f" ({now['symbolic_graphs']} symbolic)" if now["symbolic_graphs"] else ""
    seen = now["input_shapes"]
    phases = ", ".join(f"{phase} {seen[phase]}" for phase in shapes)
    return (
        f"simulated Gaudi: ops {now['ops']}, mark_steps {now['mark_steps']}{ignored}, "
        f"graph wraps {now['graph_wraps']}, graph captures {now['graph_captures']}, "
        f"graph replays {now['graph_replays']}, compiles {now['compiles']}{symbolic}, collectives {now['collectives']}, "
        f"input shapes {seen['all']} ({phases})"
    )


def report() -> None:
    """At the end of the process: the line, and the counts for a test. A child that never took a card is silent."""
    if torch.ops.simulated_gaudi.is_acquired():
        print(line(), file=sys.stderr, flush=True)
        if os.environ.get("SIMULATED_GAUDI_COUNTS"):
            with open(os.environ["SIMULATED_GAUDI_COUNTS"], "a") as file:
                file.write(json.dumps(counts()) + "\n")
    elif os.environ.get("SIMULATED_GAUDI_MAIN") == str(os.getpid()):
        print("simulated Gaudi: this process did not use it", file=sys.stderr, flush=True)
