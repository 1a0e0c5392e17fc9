"""Workarounds for the training of transformers and accelerate: resuming, checkpoints, batches. See the table in `qa.upstream`."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from qa.files import to_json


# optimum-habana leaves these among the metrics: a time of day, and a duration (misspelt) that it means to subtract from
# the throughput but looks up under another name. `qa.speed.evaluation_speed` needs neither.
STRAY_METRICS = ("_end_time", "_graph_compliation_duration")


class EpochOrder:
    """Mixin for a trainer: seed and epoch alone decide the order of the training features, so a resumed epoch has it too.

    accelerate's `skip_first_batches` returns a loader that counts epochs from 0 again. With --group_by_length transformers
    draws the order from the global random state, which is another one in a resumed run, and on each rank after some dropout.
    """

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        return None if sampler is None else SeededSampler(sampler, lambda: sum(self.seed_and_epoch()))

    def seed_and_epoch(self) -> tuple[int, int]:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return seed, int(self.state.epoch or 0)


class SeededSampler(torch.utils.data.Sampler):
    """Yield the features of a sampler that has a `generator`, which gets the seed of `seed()` each time."""

    def __init__(self, sampler: torch.utils.data.Sampler, seed: Callable[[], int]):
        self.sampler, self.seed = sampler, seed

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed())
        return iter(self.sampler)


class ResumedEpochs:
    """Mixin for a trainer: an epoch that a run resumes within takes its last update, of fewer batches than the others.

    transformers (and optimum-habana's copy) compares with a whole epoch's number of batches there, so the last gradients
    stayed for the next epoch's first update; see https://github.com/huggingface/transformers/issues/22143. Before each
    batch both check that `gradient_accumulation_steps` divides the number of batches so far. For these batches it is
    therefore set to a number that divides only the last one's count.
    """

    batches, handed_out, last_batch = None, 0, None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.handed_out = len(samples) + (self.handed_out if epoch_iterator is self.batches else 0)
        self.batches, self.accumulated = epoch_iterator, self.args.gradient_accumulation_steps
        resumed = self.handed_out < len(self.callback_handler.train_dataloader)
        if resumed and 0 < len(samples) < self.accumulated:
            self.args.gradient_accumulation_steps = self.last_batch = self.handed_out
        return samples, items

    def training_step(self, *args, **kwargs):
        if self.last_batch is None:
            return super().training_step(*args, **kwargs)
        self.args.gradient_accumulation_steps = self.accumulated
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.last_batch = None
        else:
            self.args.gradient_accumulation_steps = self.last_batch
        return loss


class RestoredCallbacks:
    """Mixin for a trainer: callbacks, such as early stopping, go on in a resumed run where they were.

    transformers restores them with --restore_callback_states_from_checkpoint only, and then with the earlier command's
    settings. It saves no checkpoint in a run that resumed without the state of one of its callbacks (KeyError).
    """

    def _load_callback_state(self) -> None:
        for name, callback in self.callbacks_with_state().items():
            saved = self.state.stateful_callbacks.setdefault(name, callback.state())
            for attribute, value in saved["attributes"].items():
                setattr(callback, attribute, value)

    def save_state(self) -> None:
        """Save the trainer's state with that of the callbacks, which transformers leaves as the last checkpoint has it."""
        self.state.stateful_callbacks |= {
            name: callback.state() for name, callback in self.callbacks_with_state().items()
        }
        super().save_state()

    def callbacks_with_state(self) -> dict:
        callbacks = [*self.callback_handler.callbacks, self.control]
        return {type(callback).__name__: callback for callback in callbacks if hasattr(callback, "state")}


class FinishedTraining:
    """Mixin for a trainer: a training that resumes at its end takes no further step.

    transformers asks whether a training is at its end after a step only, so each resume within an epoch took another one.
    """

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        self.resumed = None
        if resume_from_checkpoint is not None:
            self.resumed = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text())
            # Early stopping would count another one than that which is due.
            self.args.eval_on_start = self.args.eval_strategy != "no" and evaluation_is_due(self.resumed)
        output = super().train(resume_from_checkpoint, **kwargs)
        self.state.num_train_epochs = self.epochs
        return output

    def set_initial_training_values(self, *args, **kwargs) -> tuple:
        self.epochs, *others, steps = super().set_initial_training_values(*args, **kwargs)
        patience = self.args.early_stopping_patience
        ended = self.resumed is not None and has_ended(self.resumed, steps=steps, patience=patience)
        return 0 if ended else self.epochs, *others, steps


def has_ended(state: dict, steps: int, patience: int | None) -> bool:
    """Return whether a training has taken all its `steps`, or was stopped early for want of progress.

    Args:
        state: the content of a `trainer_state.json`.
        patience: the value of --early_stopping_patience.
    """
    early_stopping = state["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
    without_progress = early_stopping.get("early_stopping_patience_counter", 0)
    return state["global_step"] >= steps or (patience is not None and without_progress >= patience)


def evaluation_is_due(state: dict) -> bool:
    """Return whether a run was stopped before the evaluation of its last step had come to its end.

    Args:
        state: the content of a checkpoint's `trainer_state.json`.
    """
    return state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_evaluate", False)


class NoComparedShares:
    """Mixin for a trainer: a run that resumes does not compare its flags with the steps in the checkpoint's state.

    transformers warns that --logging_steps 0.01, the default here, is not 5. `qa.resume` compares the flags of both runs.
    """

    def compare_trainer_and_checkpoint_args(self, training_args, trainer_state) -> None:
        """Print no warning."""


class Resumable(ResumedEpochs, FinishedTraining, RestoredCallbacks, NoComparedShares):
    """Mixin for a trainer: a run that was stopped and resumes is the same run."""


class GivenBatchSize:
    """Mixin for a trainer: a run that resumes has the batch size of its flags.

    transformers, and optimum-habana's copy, takes the one of the checkpoint's `trainer_state.json`. That is right only for
    --auto_find_batch_size.
    """

    def _inner_training_loop(self, batch_size: int | None = None, *args, **kwargs):
        given = batch_size if self.args.auto_find_batch_size else self.args.train_batch_size
        return super()._inner_training_loop(given, *args, **kwargs)


class ReadableWeights:
    """Mixin for a trainer: files of weights can be read by those who can read the files next to them.

    safetensors 0.8.0 creates its files for their owner alone, whatever the umask.
    """

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        for weights in folder.glob("*model*.safetensors"):
            shutil.copymode(folder / "training_args.bin", weights)


def write_finite_states() -> None:
    """Let `trainer_state.json` be JSON, with null for numbers that are not finite: transformers writes NaN and Infinity."""
    from transformers import TrainerState

    def save_to_json(state, json_path: str) -> None:
        Path(json_path).write_bytes(to_json(dataclasses.asdict(state)))

    TrainerState.save_to_json = save_to_json


class RankDevice:
    """Mixin for training arguments: a CPU has no number, as in `cpu:0`, onto which torch.load cannot resume a rank."""

    @property
    def device(self) -> torch.device:
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


class BestCheckpoint:
    """Mixin for a trainer: with --save_strategy best, --load_best_model_at_end does load the best model.

    transformers notes the best step with the strategies `steps` and `epoch` only.
    """

    def _determine_best_metric(self, metrics, trial):
        better = super()._determine_best_metric(metrics, trial)
        if better and self.args.save_strategy == "best":  # the checkpoint is written next, see `qa.saving`
            self.state.best_global_step = self.state.global_step
        return better


class WholeEvaluation:
    """Mixin for a trainer: a run that does not train, as one that completes a finished run, evaluates without DeepSpeed.

    transformers 4.55.4 (and optimum-habana's copy) raises a ValueError there, except with ZeRO-3. The other stages hold whole
    models on each rank, in the type that the configuration names, in which they are evaluated here too.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.trains_with_deepspeed = self.is_deepspeed_enabled
        if self.is_deepspeed_enabled and not self.args.do_train and not self.args.hf_deepspeed_config.is_zero3():
            self.is_deepspeed_enabled = False
            self.args.bf16_full_eval |= self.args.hf_deepspeed_config.is_true("bf16.enabled")
            self.args.fp16_full_eval |= self.args.hf_deepspeed_config.is_true("fp16.enabled")

    def train(self, *args, **kwargs):
        self.is_deepspeed_enabled = self.trains_with_deepspeed  # a caller's arguments may not say `do_train`
        return super().train(*args, **kwargs)
