"""Trainers that answer questions when they evaluate, and the steps that both scripts take with them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa.arguments import TITLES
from qa.buckets import eval_group
from qa.candidates import Candidates
from qa.copies import WAITING, UnwaitedCopies
from qa.device import trainer_class
from qa.identity import RunRecord
from qa.kept_rows import KeptRows, StepOutputs
from qa.order import EpochOrderSampler, evaluation_order, in_order, training_order
from qa.out_of_memory import BatchNotes
from qa.outputs import NOT_FOR_THE_MODEL, batch_candidates
from qa.push import HubUploads
from qa.saving import WholeSaves
from qa.settings import SavedSettings
from qa.speed import TrainingSpeed, evaluation_speed
from qa.stopping import StoppableTraining
from qa.totals import WholeRun
from qa.upstream.training import (
    STRAY_METRICS,
    BestCheckpoint,
    EpochOrder,
    GivenBatchSize,
    ReadableWeights,
    Resumable,
    WholeEvaluation,
)
from qa.windows import IGNORED, PACKED_INPUTS
from qa.workers import ServedWorkers


logger = logging.getLogger(__name__)


class FeatureOrder(EpochOrder):
    """Mixin for a trainer: batches as the buckets or the packing of the features ask for them, else the trainer's own."""

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """Return a collator without what the model does not take: omitted from batches, since features come as one object."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return TakenInputs(data_collator, {*self._signature_columns, *PACKED_INPUTS, *NOT_FOR_THE_MODEL})

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        order = self.order_of_epoch(dataset)
        if order is None:
            return super()._get_train_sampler(dataset)
        return EpochOrderSampler(partial(self.order_of_epoch, dataset), len(order))

    def order_of_epoch(self, dataset) -> np.ndarray | None:
        return training_order(dataset, self.args, self.seed_and_epoch())

    def _get_eval_sampler(self, eval_dataset):
        """Return the order of the evaluation, which is that of the features also with --group_by_length."""
        order = evaluation_order(eval_dataset, self.args)
        return None if order is None else EpochOrderSampler(lambda: order, len(order))


@dataclass
class TakenInputs:
    """A collator whose batches have no other entries than those that are taken."""

    collate: Callable
    taken: set[str]

    def __call__(self, features) -> dict:
        return {name: tensor for name, tensor in self.collate(features).items() if name in self.taken}


class AnswerEvaluation(FeatureOrder):
    """Mixin for a trainer: `evaluate` and `predict` turn the model's outputs into answers and score them.

    Args (beyond the trainer's own):
        eval_examples: the rows that `eval_dataset` holds the features of.
        post_process_function: `(examples, features, predictions, stage)` -> `EvalPrediction` of answers and references;
            `stage` is "eval", "predict" or "tuning". References are None where the data has no answers. `predictions` are the
            `qa.candidates.Candidates` of the features; for models that write see `QuestionAnsweringSeq2SeqTrainer`.
        compute_metrics: `EvalPrediction` of answers and references -> {name: value}.
        write_answers: `(answers, stage)`; writes the files of a stage from the result of `post_process_function`.
        make_settings: returns the `qa.settings.Settings` that each saved model gets; without it none.

    Attributes:
        answered: on rank 0 the result of `post_process_function` in the last evaluation or prediction.
    """

    answered: EvalPrediction | None = None

    def __init__(
        self,
        *args,
        eval_examples=None,
        post_process_function: Callable | None = None,
        compute_metrics: Callable | None = None,
        write_answers: Callable | None = None,
        make_settings: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)  # without compute_metrics, to which the loop would pass logits, not answers
        self.args.include_for_metrics = []  # nor inputs, which it would gather in each step
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function
        self.answer_metrics = compute_metrics
        self.write_answers = write_answers
        self.make_settings = make_settings

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Run the model on a batch and keep its outputs; return none, of which the libraries' loops would make copies.

        These would gather them in each step, and put them together with those of all steps before.
        """
        self.begun.append(time.time())
        self.kept.add(self.step_outputs(model, inputs, prediction_loss_only, ignore_keys))
        return None, None, None

    def library_step(self, *args, **kwargs):
        """Return what the library's `prediction_step` returns."""
        return super().prediction_step(*args, **kwargs)

    def step_outputs(self, model, inputs, prediction_loss_only: bool, ignore_keys) -> StepOutputs:
        """Run the model on a batch, and return what is kept of its outputs."""
        raise NotImplementedError

    def first_rows(self, labels: torch.Tensor) -> torch.Tensor:
        """Return (batch,) which rows of this step's batch do not repeat others to fill it up.

        Every batch takes the same operations, with which a Gaudi in lazy mode compiles no graph for the last one.

        Args:
            labels: (batch, ...) of this rank.
        """
        place = (len(self.begun) - 1) * eval_group(self.args) + self.args.process_index * self.args.eval_batch_size
        first = torch.arange(place, place + len(labels)) < self.features_asked
        return first.to(labels.device, non_blocking=labels.device.type not in WAITING)

    def evaluate(
        self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict:
        """Evaluate; log and return the metrics: loss, speed and those that `compute_metrics` returns."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        examples = self.eval_examples if eval_examples is None else eval_examples
        _, metrics = self.answer(
            self.get_eval_dataloader(dataset),
            features=dataset,
            examples=examples,
            stage="eval",
            ignore_keys=ignore_keys,
            prefix=metric_key_prefix,
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, predict_dataset, predict_examples, ignore_keys=None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Answer the questions of `predict_examples`; score them where gold answers are known."""
        answers, metrics = self.answer(
            self.get_test_dataloader(predict_dataset),
            features=predict_dataset,
            examples=predict_examples,
            stage="predict",
            ignore_keys=ignore_keys,
            prefix=metric_key_prefix,
        )
        return PredictionOutput(predictions=answers.predictions, label_ids=answers.label_ids, metrics=metrics)

    def answer(self, loader, features, examples, stage: str, ignore_keys, prefix: str) -> tuple[EvalPrediction, dict]:
        """Return answers and metrics of the features in `loader`; rank 0 finds, scores and writes the answers.

        On other ranks the answers are None.
        """
        start = time.time()
        output = self.run_model(loader, features, stage, ignore_keys=ignore_keys, metric_key_prefix=prefix)
        loss = self.kept.mean_loss(self.accelerator)
        metrics = {} if loss is None else {f"{prefix}_loss": loss}
        metrics |= {name: value for name, value in output.metrics.items() if not name.endswith(STRAY_METRICS)}
        metrics |= evaluation_speed(
            prefix,
            start=start,
            begun=self.begun,
            warmup=self.args.throughput_warmup_steps,
            samples=output.num_samples,
            batch=eval_group(self.args),
        )
        self.answered, scores = None, [{}]
        if (tables := self.kept_tables(features)) and self.post_process_function is not None:
            scores = [self.answer_and_score(tables, examples, features, stage)]
        if self.args.world_size > 1:
            broadcast_object_list(scores)
        answers = EvalPrediction(None, None) if self.answered is None else self.answered
        return answers, metrics | {f"{prefix}_{name}": value for name, value in scores[0].items()}

    def answer_only(self, features, examples) -> EvalPrediction | None:
        """Return the answers to questions, neither scored nor written; None on other ranks than rank 0."""
        self.run_model(self.get_test_dataloader(features), features, "tuning")
        tables = self.kept_tables(features)
        return self.to_answers(tables, examples, features, "tuning") if tables else None

    def run_model(self, loader, features, stage: str, **settings):
        """Run the model on the features in `loader`, and return the loop's output; `kept` holds what answers need."""
        self.stage_name, group = TITLES[stage], eval_group(self.args)
        self.begun, self.features_asked = [], len(features)
        self.kept = KeptRows(steps=-(-len(features) // group), batch=self.args.eval_batch_size)
        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        # A run that resumes where this evaluation was takes the same dropout without it.
        with torch.random.fork_rng(devices=[]):
            output = loop(loader, self.stage_name.capitalize(), **settings)
        self.kept.take()
        return output

    def kept_tables(self, features) -> list[np.ndarray] | None:
        """Return the kept rows of all ranks, (features, ...) each; None on other ranks than rank 0. Keep them no longer."""
        tables, self.kept = self.kept.tables(self.accelerator), None
        order = evaluation_order(features, self.args)
        return tables and [in_order(table[: len(features)], order, len(features)) for table in tables]

    def answer_and_score(self, tables: list[np.ndarray], examples, features, stage: str) -> dict:
        """Turn kept rows into answers, score them and write their files; return the scores."""
        start = time.time()
        self.answered = answers = self.to_answers(tables, examples, features, stage)
        scores = self.score(answers)
        self.write(answers, stage)
        return {"postprocess_runtime": round(time.time() - start, 4)} | scores

    def to_answers(self, tables: list[np.ndarray], examples, features, stage: str) -> EvalPrediction:
        """Return the answers of `post_process_function`."""
        return self.post_process_function(examples, features, self.predictions_of(tables), stage)

    def predictions_of(self, tables: list[np.ndarray]):
        """Return the kept outputs, (features, ...) each, in the form that `post_process_function` takes."""
        return tables

    def score(self, answers: EvalPrediction) -> dict[str, float]:
        """Return the metrics of the answers; none where the gold answers are not known."""
        known = self.answer_metrics is not None and answers.label_ids is not None
        return self.answer_metrics(answers) if known else {}

    def write(self, answers: EvalPrediction, stage: str) -> None:
        if self.write_answers is not None:
            self.write_answers(answers, stage)


class RunFiles(RunRecord, SavedSettings, GivenBatchSize, ReadableWeights, HubUploads, WholeSaves):
    """Mixin for a trainer: the files that it adds to those of a model, and those that it uploads."""


class WholeTraining(
    BatchNotes,
    StoppableTraining,
    Resumable,
    WholeRun,
    BestCheckpoint,
    WholeEvaluation,
    TrainingSpeed,
    ServedWorkers,
    UnwaitedCopies,
    AnswerEvaluation,
    RunFiles,
):
    """Mixin for a trainer: how both scripts' trainers stop, resume, count, choose, time, load, copy, answer and save.

    The order matters in two places. `AnswerEvaluation` ends the chain of `prediction_step`, so the mixins that have one
    precede it. `WholeRun` precedes `TrainingSpeed`, whose rates it replaces.
    """


class QuestionAnsweringTrainer(WholeTraining, trainer_class(False)):
    """Train and evaluate models that mark the answer in its context: a subclass of GaudiTrainer or Trainer.

    Args (beyond those of `AnswerEvaluation` and the base):
        n_best_size: the number of best starts and ends to keep of each feature.
    """

    def __init__(self, *args, n_best_size: int = 20, **kwargs):
        super().__init__(*args, **kwargs)
        self.n_best_size = n_best_size

    def training_step(self, model, inputs, *args, **kwargs):
        for name in NOT_FOR_THE_MODEL:
            del inputs[name]
        return super().training_step(model, inputs, *args, **kwargs)

    def step_outputs(self, model, inputs, prediction_loss_only: bool, ignore_keys) -> StepOutputs:
        """Return the loss of the features with a label, and the logits, of which the best positions are kept, a tenth."""
        places, counted = [inputs.pop(name) for name in NOT_FOR_THE_MODEL], None
        if "start_positions" in inputs:
            first = self.first_rows(inputs["start_positions"])
            labels = {name: inputs[name].masked_fill(~first, IGNORED) for name in ("start_positions", "end_positions")}
            inputs, counted = inputs | labels, (labels["start_positions"] != IGNORED).sum()
        loss, logits, _ = self.library_step(
            model, inputs, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys
        )
        tensors = () if logits is None else (*logits[:2], *places)  # BART also returns its encoder's states
        return StepOutputs(loss, counted, tensors, self.best_rows)

    def best_rows(self, starts, ends, *places: torch.Tensor) -> list[np.ndarray]:
        """Return the best positions of the features of a batch, (batch, columns)."""
        return [batch_candidates((starts, ends), *places, self.n_best_size).packed()]

    def predictions_of(self, tables: list[np.ndarray]) -> Candidates:
        (packed,) = tables
        return Candidates.unpacked(packed)
