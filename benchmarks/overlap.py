"""Evaluation on a device that computes on its own: outputs read one step late, compared with at once.

With a GPU the model is a BERT of 12 layers, 768 wide, from random weights, in bf16. Without one the device is emulated: the model
reads its logits off a table, and each of its steps takes the device N ms after the one before. Its outputs can be read after
that, and reading them waits. The clock is then the CPU time of the process plus those waits, so that a busy machine changes
no ratio. All else is the trainer's own: batches, steps, losses, the best positions of every feature.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable

from benchmarks.memory import TableForQuestionAnswering
from benchmarks.questions import DOC_STRIDE, MAX_SEQ_LENGTH, load_questions, make_tokenizer


# isort: split
import utils_qa
from qa.device import training_arguments  # before what imports PyTorch
from trainer_qa import QuestionAnsweringTrainer


# isort: split
import numpy as np
import torch
from transformers import BertConfig, BertForQuestionAnswering, PretrainedConfig

import qa.padding


BATCHES = (8, 32, 64)
MILLISECONDS = (0, 1.5, 3, 9)
READS = {
    getattr(torch.Tensor, name) for name in ("cpu", "numpy", "item", "tolist", "__float__", "__int__", "__bool__")
}


class Device:
    """A device that computes one step after another, each for some seconds, and a clock that its readers share."""

    def __init__(self, seconds: float):
        self.seconds, self.free, self.waited = seconds, 0.0, 0.0

    def now(self) -> float:
        return time.process_time() + self.waited

    def step(self) -> float:
        """Begin another step after those before it; return the time when it will be done."""
        self.free = max(self.free, self.now()) + self.seconds
        return self.free

    def wait(self, until: float) -> None:
        self.waited += max(0.0, until - self.now())


class OnDevice(torch.Tensor):
    """A tensor that can be read when its step is done; what is computed from it is on the device too."""

    @classmethod
    def of(cls, tensor: torch.Tensor, device: Device, done: float) -> "OnDevice":
        made = tensor.as_subclass(cls)
        made.on, made.done = device, done
        return made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        lists = [arg if isinstance(arg, (list, tuple)) else [arg] for arg in args]
        last = max((part for arg in lists for part in arg if hasattr(part, "done")), key=lambda part: part.done)
        if function in READS:
            last.on.wait(last.done)
            return result.as_subclass(torch.Tensor) if isinstance(result, torch.Tensor) else result
        return cls.of(result, last.on, last.done) if isinstance(result, torch.Tensor) else result


class Emulated(TableForQuestionAnswering):
    """A model on an emulated device."""

    def __init__(self, config, device: Device):
        super().__init__(config)
        self.emulated = device

    def forward(self, **inputs):
        output = super().forward(**inputs)
        done = self.emulated.step()
        for name, tensor in output.items():
            output[name] = OnDevice.of(tensor.detach(), self.emulated, done)
        return output


class AtOnce(QuestionAnsweringTrainer):
    """A trainer that reads the outputs of a step before the next one begins."""

    def prediction_step(self, *args, **kwargs):
        result = super().prediction_step(*args, **kwargs)
        self.kept.take()
        return result


def bench(full: bool) -> None:
    rows, source = load_questions("dev", 2000 if full else 500)
    tokenizer, rounds = make_tokenizer(rows), 5 if full else 3
    features = utils_qa.prepare_features(rows, tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE)
    print(f"\n{len(features):,} features of {source}; median of {rounds}\n")
    head = "| batch | device | read at once, ms a step | one step late, ms a step | ratio |"
    print(f"{head}\n|---|---|---|---|---|", flush=True)
    for batch, (device, model, clock) in itertools.product(BATCHES, devices(len(tokenizer))):
        times, tables = {AtOnce: [], QuestionAnsweringTrainer: []}, {}
        for _ in range(rounds):
            for kind in times:
                seconds, tables[kind] = evaluate(kind, model, clock, tokenizer, features, batch)
                times[kind].append(1000 * seconds / -(-len(features) // batch))
        if not np.array_equal(*tables.values()):
            raise SystemExit("the rows that were kept differ")
        at_once, late = (statistics.median(found) for found in times.values())
        print(f"| {batch} | {device} | {at_once:.2f} | {late:.2f} | {at_once / late:.2f}x |", flush=True)


def devices(vocabulary: int) -> list[tuple[str, torch.nn.Module, Callable]]:
    """Return name, model and clock of each device: a GPU, else the emulated ones."""
    torch.manual_seed(0)
    if torch.cuda.is_available():
        model = BertForQuestionAnswering(BertConfig(vocab_size=vocabulary))
        return [(torch.cuda.get_device_name(), model, time.perf_counter)]
    emulated = [Device(milliseconds / 1000) for milliseconds in MILLISECONDS]
    config = PretrainedConfig(vocab_size=vocabulary)
    return [(f"{1000 * device.seconds:g} ms a step", Emulated(config, device), device.now) for device in emulated]


def evaluate(
    kind: type, model: torch.nn.Module, clock: Callable, tokenizer, features, batch: int
) -> tuple[float, np.ndarray]:
    """Run the model on all features; return the seconds on the device's clock, and what is kept of its outputs."""
    settings = {"report_to": "none", "disable_tqdm": True, "log_level": "error", "remove_unused_columns": False}
    settings |= {"label_names": ["start_positions", "end_positions"], "bf16_full_eval": torch.cuda.is_available()}
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            model=model,
            args=training_arguments(False)(output_dir=folder, per_device_eval_batch_size=batch, **settings),
            processing_class=tokenizer,
            data_collator=qa.padding.PaddingCollator(tokenizer, MAX_SEQ_LENGTH),
        )
        loader, start = trainer.get_test_dataloader(features), clock()
        trainer.run_model(loader, features, "predict")
        return clock() - start, trainer.kept_tables(features)[0]
