"""Runs of the scripts in one process on the simulated Gaudi, for test_gaudi_flags.py.

    python tests/runs/gaudi_flags_run.py RUNS_JSON     {name: {"script": ..., "flags": [...], "lazy": true, "memory": 9}}

`memory` is how many bytes of the card a run may take, null for no limit.

Each run leaves `seen.json` in its --output_dir: what shows whether its flags had an effect.
"""

import gc
import importlib
import json
import logging
import os
import sys
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path


os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qa.script import begin_script  # noqa: E402


begin_script()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import qa.stages  # noqa: E402
from qa.errors import Stopped, UserError, problems_of  # noqa: E402


class Copies(TorchDispatchMode):
    """Count the copies of batches to the card: those that wait for their end, and those that do not."""

    def __init__(self):
        super().__init__()
        self.numbers = {"waiting": 0, "not waiting": 0}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and self.is_of_batch(args[0], kwargs.get("device")):
            self.numbers["not waiting" if kwargs.get("non_blocking") else "waiting"] += 1
        return function(*args, **kwargs)

    def is_of_batch(self, tensor: torch.Tensor, device) -> bool:
        """Return whether a copy is that of numbers of several features; a model's numbers are weights, or one row of positions."""
        on_host = tensor.device.type == "cpu" and "hpu" in str(device)
        return on_host and tensor.dtype == torch.int64 and tensor.dim() > 0 and len(tensor) > 1


class Lines(logging.Handler):
    """Keep the warnings of a run."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def recorded(owner, name: str, calls: list):
    """Add the arguments of each call of a function to a list; it is still called."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        plain = [value for value in args if value is None or isinstance(value, (bool, int, float, str))]
        calls.append([plain, {name: value for name, value in kwargs.items() if isinstance(value, (bool, int))}])
        return function(*args, **kwargs)

    setattr(owner, name, staticmethod(call) if isinstance(owner, type) else call)
    yield
    setattr(owner, name, staticmethod(function) if isinstance(owner, type) else function)


def run(script: str, flags: list[str], lazy: bool, memory: int | None) -> dict:
    """Run a script's main; return what it used, or the problems that end it."""
    from habana_frameworks.torch import counting, hpu
    from habana_frameworks.torch.hpex import kernels

    before, at_start, lines, copies, trainers = os.environ.copy(), counting.counts(), Lines(), Copies(), []
    attended, wrapped, generated = [], [], []
    dynamo = {name: getattr(torch._dynamo.config, name) for name in DYNAMO}
    main, stages_run = importlib.import_module(script), qa.stages.run
    os.environ["PT_HPU_LAZY_MODE"] = str(int(lazy))
    if memory is not None:
        gc.collect()  # of the run before
        os.environ["SIMULATED_GAUDI_MEMORY"] = str(hpu.memory_allocated() + memory)

    def run_and_keep(trainer, *args, **kwargs) -> None:
        trainers.append(trainer)
        with recorded(trainer.model, "generate", generated) if trainer.model.can_generate() else nullcontext():
            stages_run(trainer, *args, **kwargs)

    main.run = run_and_keep
    logging.getLogger().addHandler(lines)
    if "--torch_compile" in flags:
        torch.compiler.reset()
    torch._C._set_math_sdp_allow_fp16_bf16_reduction(False)
    problems = []
    watch = nullcontext() if "--torch_compile" in flags else copies  # a mode keeps graphs from being compiled
    try:
        with watch, recorded(kernels.FusedSDPA, "apply", attended), recorded(hpu, "wrap_in_hpu_graph", wrapped):
            main.main(flags)
    except (UserError, RuntimeError) as error:
        problems = list(problems_of(error))
    except Stopped:
        pass
    logging.getLogger().removeHandler(lines)
    counts = {name: value - at_start[name] for name, value in counting.counts().items() if name in COUNTS}
    seen = counts | {"problems": problems, "lines": lines.lines, "copies": copies.numbers}
    seen |= {"attended": attended[:1], "wrapped": wrapped, "generated": generated[:1]}
    seen |= settings_of(trainers[0]) if trainers else {}
    for name, value in dynamo.items():
        setattr(torch._dynamo.config, name, value)
    os.environ.clear()
    os.environ.update(before)
    return seen


COUNTS = ("mark_steps", "graph_wraps", "graph_captures", "compiles")
warnings.filterwarnings(
    "ignore", "torch._dynamo.config.inline_inbuilt_nn_modules is deprecated"
)  # the image's needs it
DYNAMO = ("cache_size_limit", "inline_inbuilt_nn_modules", "allow_unspec_int_on_nn_module")


def settings_of(trainer) -> dict:
    """Return the settings that a trainer has at its end."""
    model, optimizer = trainer.model, getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "batch_size": trainer.state.train_batch_size,
        "modules": sorted({type(module).__name__ for module in model.modules()}),
        "outermost": type(trainer.model_wrapped).__name__,
        "optimizer": type(optimizer).__name__,
        "epsilon": optimizer.defaults.get("eps") if optimizer else None,
        "dynamic": trainer.accelerator.state.dynamo_plugin.dynamic,
        "sdp_on_bf16": torch._C._get_math_sdp_allow_fp16_bf16_reduction(),
        **{name: getattr(torch._dynamo.config, name) for name in DYNAMO},
    }


def main() -> None:
    for task in json.loads(Path(sys.argv[1]).read_text()).values():
        folder = Path(task["flags"][task["flags"].index("--output_dir") + 1])
        folder.mkdir(parents=True)
        os.chdir(folder.parent)
        seen = run(task["script"], task["flags"], task["lazy"], task["memory"])
        folder.mkdir(exist_ok=True)
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
