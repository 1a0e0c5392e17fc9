"""Run the scripts for several models in one process, since importing them takes longer than all the runs.

    python tests/runs/gaudi_models_run.py jobs.json

`jobs.json` is a list of {"script", "argv", "output"}; "without", [module, function], names a function to replace by one
that does nothing. A run that fails leaves its traceback in `error.txt` of its output folder, and the next one starts. Its
counts on the simulated Gaudi are written to `counts.json` there, with `furthest_id` and `recomputed`, see `Calls`.
"""

import contextlib
import importlib
import json
import os
import sys
import traceback
from pathlib import Path


os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Calls:
    """Record how far past the end of an embedding matrix ids reach, negative if none does, and calls within a backward.

    Ids only on the CPU: on a card, reading them would end the graph that is captured. Only layers that are checkpointed
    are called within a backward.
    """

    def __init__(self):
        self.furthest, self.recomputed = None, 0

    def __call__(self, module, inputs) -> None:
        import torch

        if torch.compiler.is_compiling():  # a graph that counts would be compiled again in every step
            return
        self.recomputed += torch._C._current_graph_task_id() >= 0
        if isinstance(module, torch.nn.Embedding) and inputs and inputs[0].device.type == "cpu":
            beyond = int(inputs[0].max()) - module.num_embeddings
            self.furthest = beyond if self.furthest is None else max(self.furthest, beyond)


def run(job: dict) -> None:
    """Run a script once, in its own environment: training arguments leave settings for accelerate in it."""
    import torch

    output, calls, before, at_start = Path(job["output"]), Calls(), os.environ.copy(), counted()
    main = importlib.import_module(job["script"]).main
    hook = torch.nn.modules.module.register_module_forward_pre_hook(calls)
    output.mkdir(parents=True, exist_ok=True)  # a check makes none
    try:
        with without(*job["without"]) if "without" in job else contextlib.nullcontext():
            main(job["argv"])
    except Exception:
        (output / "error.txt").write_text(traceback.format_exc())
    hook.remove()
    torch._dynamo.reset()
    counts = {name: value - at_start.get(name, 0) for name, value in counted().items()}
    (output / "counts.json").write_text(
        json.dumps({"furthest_id": calls.furthest, "recomputed": calls.recomputed, **counts})
    )
    os.environ.clear()
    os.environ.update(before)


@contextlib.contextmanager
def without(module: str, function: str):
    """Replace a function by one that does nothing."""
    module = importlib.import_module(module)
    kept = getattr(module, function)
    setattr(module, function, nothing)
    try:
        yield
    finally:
        setattr(module, function, kept)


def nothing() -> None:
    pass


def counted() -> dict[str, int]:
    """Return the counts of this process on the simulated Gaudi so far; empty without one."""
    if "habana_frameworks.torch" not in sys.modules:
        return {}
    from habana_frameworks.torch import counting

    return {name: value for name, value in counting.counts().items() if isinstance(value, int)}


if __name__ == "__main__":
    from qa.script import begin_script

    begin_script()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
