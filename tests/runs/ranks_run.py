"""Run the scripts several times in one process of a rank, since importing them takes longer than the runs.

    python gaudi_spawn.py --world_size 2 tests/runs/ranks_run.py JOBS_JSON

`JOBS_JSON` is {name: [script, argument, ...]}. The first run that fails ends the process, as it would end the script.
In a run whose name begins with one of STOPS, something happens to rank 1 in a step, and all ranks have to end with that.
Next to it, `written_by_{rank}.json` holds {name: {file: how often this rank opened it for writing}}, `read_by_{rank}.json` how
often it opened the files of questions, and `workers.json` whether
rank 0 was ever forked, and whether a server started its data loader workers.
"""

import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import forkserver
from pathlib import Path


os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "quickstart")]

OPENED, READ = Counter(), Counter()
FORKS = []
os.register_at_fork(after_in_parent=lambda: FORKS.append("fork"))


def note_opened(event: str, arguments: tuple) -> None:
    """Count the files that Python opens for writing, by their last names (not what the libraries' C++ and Rust write)."""
    if event == "open" and str(arguments[0]).endswith(("train.json", "dev.json")):
        READ[Path(arguments[0]).name] += 1
    elif event == "open" and isinstance(arguments[1], str) and not arguments[1].startswith("r"):
        if not isinstance(arguments[0], int):  # a descriptor: a pipe, or memory that processes share
            OPENED[str(arguments[0])] += 1
    elif event == "os.rename":
        source, target = map(str, arguments[:2])
        OPENED[target] += OPENED.pop(source, 0)


def run(script: str, argv: list[str]) -> dict[str, int]:
    """Run a script once, in its own environment: training arguments leave settings for accelerate in it."""
    before = os.environ.copy()
    OPENED.clear()
    importlib.import_module(script).main(argv)
    restore(before)
    return dict(OPENED)


def run_to_stop(script: str, argv: list[str], what: str) -> None:
    """Run a script that has to stop because of `what` happens to rank 1; print what rank 0 would print."""
    import qa.stopping
    from qa.errors import Stopped

    before = os.environ.copy()
    qa.stopping.SECONDS_BETWEEN_LOOKS = 0  # A simulated Gaudi would take all steps before the second look.
    try:
        with STOPS[what]() if os.environ["RANK"] == "1" else nullcontext():
            importlib.import_module(script).main(argv)
        raise AssertionError("the run was not stopped")
    except Stopped as stop:
        print(f"exit status {stop.status}: {stop.line}")
    restore(before)


def signal_in(step: int, batch: int | None = None):
    """Let a signal come in a step, or in a batch of the evaluation after it."""
    from helpers import signal_at_step  # It imports PyTorch, before which the script sets the Gaudi's mode.

    return signal_at_step(signal.SIGTERM, step, batch)


@contextmanager
def at_step(step: int, function: Callable):
    """Call a function of the model at the beginning of a step."""
    from transformers import TrainerCallback, trainer

    class Caller(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == step - 1:
                function(model)

    trainer.DEFAULT_CALLBACKS.append(Caller)
    try:
        yield
    finally:
        trainer.DEFAULT_CALLBACKS.remove(Caller)


def end_of_time(model) -> None:
    from qa.process import CLOCK

    CLOCK.began -= 10**6


def lose_weights(model) -> None:
    import torch

    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


STOPS = {
    "stopped": partial(signal_in, 3),
    "timed": partial(at_step, 5, end_of_time),
    "lost": partial(at_step, 7, lose_weights),
    "evaluated": partial(signal_in, 8, batch=1),
}


def restore(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def main() -> None:
    jobs = Path(sys.argv[1])
    written = {}
    for name, (script, *argv) in json.loads(jobs.read_text()).items():
        what = name.partition("_")[0]
        if what in STOPS:
            run_to_stop(script, argv, what)
        else:
            written[name] = run(script, argv)
    if os.environ["RANK"] == "0":
        from helpers import addresses_listening

        workers = {"forked": bool(FORKS), "served": forkserver._forkserver._forkserver_pid is not None}
        (jobs.parent / "workers.json").write_text(json.dumps(workers))
        (jobs.parent / "listening.json").write_text(json.dumps(addresses_listening(int(os.environ["MASTER_PORT"]))))
    (jobs.parent / f"read_by_{os.environ['RANK']}.json").write_text(json.dumps(READ))
    (jobs.parent / f"written_by_{os.environ['RANK']}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    from qa.errors import run_or_exit
    from qa.script import begin_script

    begin_script()
    sys.addaudithook(note_opened)
    run_or_exit(main)
