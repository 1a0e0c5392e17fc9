"""Runs of the scripts in one process on the simulated Gaudi, for test_gaudi_trainer.py.

    python tests/runs/gaudi_trainer_run.py RUNS_JSON     {name: {"script": ..., "flags": [...], "without": [...]}}

`without` names corrections to remove for the run, `Class.method` of the module that defines it. Every run writes
its files to its own --output_dir.
"""

import importlib
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from qa.script import begin_script  # noqa: E402


begin_script()

import qa.stages  # noqa: E402
from qa.stages import train  # noqa: E402


# Corrections by name: module, class and method.
CORRECTIONS = {
    "GaudiCorrections.compute_loss": ("qa.upstream.gaudi", "GaudiCorrections", "compute_loss"),
    "GaudiCorrections.get_batch_samples_transformers": (
        "qa.upstream.gaudi",
        "GaudiCorrections",
        "get_batch_samples_transformers",
    ),
    "QuestionAnsweringSeq2SeqTrainer.token_loss": (
        "trainer_seq2seq_qa",
        "QuestionAnsweringSeq2SeqTrainer",
        "token_loss",
    ),
    "ResumedEpochs.get_batch_samples": ("qa.upstream.training", "ResumedEpochs", "get_batch_samples"),
}


def run(script: str, flags: list[str], without: list[str]) -> None:
    """Run a script's main without some corrections."""
    taken = []
    for name in without:
        module, owner, method = CORRECTIONS[name]
        owner = getattr(importlib.import_module(module), owner)
        taken.append((owner, method, owner.__dict__[method]))
        if method == "token_loss":
            owner.token_loss = None
        else:
            delattr(owner, method)
    try:
        importlib.import_module(script).main(flags)
    finally:
        for owner, method, function in taken:
            setattr(owner, method, function)


def train_and_record(trainer, *args) -> dict:
    """Train as `qa.stages.train` does, and write the trainer's settings to a file; return the metrics."""
    metrics = train(trainer, *args)
    settings = {
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "fused_clip_norm": trainer.FusedNorm is not None,
        "autocast": trainer.use_hpu_amp,
        "device": trainer.model.device.type,
    }
    if trainer.args.world_size > 1:
        handler = vars(trainer.accelerator.ddp_handler or object)
        settings |= {name: handler.get(name) for name in ("bucket_cap_mb", "find_unused_parameters")}
        settings["outermost"] = type(trainer.model_wrapped).__name__
    (Path(trainer.args.output_dir) / "settings.json").write_text(json.dumps(settings))
    return metrics


def main() -> None:
    qa.stages.train = train_and_record
    for task in json.loads(Path(sys.argv[1]).read_text()).values():
        run(task["script"], task["flags"], task.get("without", []))


if __name__ == "__main__":
    main()
