"""Trainers that answer questions when they evaluate, and the steps that both scripts take with them."""

import logging
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa.answers import Candidates, best_positions
from qa.buckets import EpochOrderSampler, eval_group, evaluation_order, train_group, training_order
from qa.device import trainer_class
from qa.speed import TrainingSpeed, evaluation_speed
from qa.upstream import STRAY_METRICS, BestCheckpoint, JoinedSaves, ResumedEpochs
from qa.windows import IGNORED, labelled_share


logger = logging.getLogger(__name__)

NOT_FOR_THE_MODEL = ("cls_index", "lengths")  # of a batch, which best positions are found with


class LengthBuckets:
    """Mixin for a trainer: batches of one width where the features have widths, else the trainer's own.

    Not by accelerate's epoch, which is 0 again when a run resumes within a later one (1.10.1, `skip_first_batches`).
    """

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that collators read in addition to the model's inputs."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*self._signature_columns, "width", "cls_index"})

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        widths = getattr(dataset, "widths", None)
        if widths is None:
            return super()._get_train_sampler(dataset)
        order = partial(self.order_of_epoch, widths)
        return EpochOrderSampler(order, len(order()))

    def order_of_epoch(self, widths: np.ndarray) -> np.ndarray:
        epoch = int(self.state.epoch or 0)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return training_order(widths, train_group(self.args), (seed, epoch), self.args.dataloader_drop_last)

    def _get_eval_sampler(self, eval_dataset):
        """In the order of the features without buckets, always: with --group_by_length transformers 4.55 has another."""
        widths = self.evaluation_widths(eval_dataset)
        if widths is None:
            return None
        order = partial(evaluation_order, widths, eval_group(self.args))
        return EpochOrderSampler(order, len(order()))

    def evaluation_widths(self, dataset) -> np.ndarray | None:
        """Those of the features; one for all, so that no batch is a short one, where --dataloader_drop_last drops those."""
        widths = getattr(dataset, "widths", None)
        return np.zeros(len(dataset)) if widths is None and self.args.dataloader_drop_last else widths


class AnswerEvaluation(LengthBuckets):
    """Mixin for a trainer: `evaluate` and `predict` turn what the model puts out into answers and score them.

    Args (beyond the trainer's own):
        eval_examples: the rows that `eval_dataset` holds the features of.
        post_process_function: `(examples, features, predictions, stage)` -> `EvalPrediction` of answers and references;
            `stage` is "eval" or "predict". References are None where the data has no answers. `predictions` are the
            `qa.answers.Candidates` that `postprocess_qa_predictions` takes too; of writers see its trainer.
        compute_metrics: `EvalPrediction` of answers and references -> {name: value}.
        write_answers: `(what post_process_function returned, stage)`; writes the files of a stage.
    """

    def __init__(
        self,
        *args,
        eval_examples=None,
        post_process_function: Callable | None = None,
        compute_metrics: Callable | None = None,
        write_answers: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)  # without compute_metrics: the loop would feed it logits, not answers
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function
        self.answer_metrics = compute_metrics
        self.write_answers = write_answers

    def prediction_step(self, *args, **kwargs):
        self.begun.append(time.time())
        return super().prediction_step(*args, **kwargs)

    def keep(self, *tensors: torch.Tensor) -> None:
        """Keep the outputs of a step, (batch, ...) each of every rank, for the answers.

        The libraries' loops would copy all that they have with every batch, and optimum-habana 1.21.2 casts all tensors to the
        type of the first.
        """
        if self.args.world_size > 1:
            tensors = tuple(tensor.to(self.args.device) for tensor in tensors)
        gathered = self.accelerator.gather_for_metrics(tensors)  # without what fills the last batch up
        if self.is_world_process_zero():
            self.kept.add([tensor.cpu().numpy() for tensor in gathered])

    def evaluate(
        self, eval_dataset=None, eval_examples=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict:
        """Evaluate; log and return the metrics: loss, speed and those that `compute_metrics` returns."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        examples = self.eval_examples if eval_examples is None else eval_examples
        _, metrics = self.answer(
            self.get_eval_dataloader(dataset), dataset, examples, "eval", ignore_keys, metric_key_prefix
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, predict_dataset, predict_examples, ignore_keys=None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Answer the questions of `predict_examples`; score them where gold answers are known."""
        loader = self.get_test_dataloader(predict_dataset)
        answers, metrics = self.answer(
            loader, predict_dataset, predict_examples, "predict", ignore_keys, metric_key_prefix
        )
        return PredictionOutput(predictions=answers.predictions, label_ids=answers.label_ids, metrics=metrics)

    def answer(self, loader, features, examples, stage: str, ignore_keys, prefix: str) -> tuple[EvalPrediction, dict]:
        """Run the model over `loader`; on rank 0 turn its output into answers, score and write them; all ranks get both."""
        group = eval_group(self.args)
        start, self.begun, self.kept = time.time(), [], PreallocatedArrays(-(-len(features) // group) * group)
        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        output = loop(loader, "Evaluation" if stage == "eval" else "Prediction", None, ignore_keys, prefix)
        metrics = {name: value for name, value in output.metrics.items() if not name.endswith(STRAY_METRICS)}
        metrics |= evaluation_speed(
            prefix,
            start,
            self.begun,
            self.args.throughput_warmup_steps,
            output.num_samples,
            group,
        )
        result = [EvalPrediction(None, None), {}]
        if self.kept.count and self.post_process_function is not None:
            result = self.answer_and_score(examples, features, stage)
        self.kept = None
        if self.args.world_size > 1:
            broadcast_object_list(result)
        answers, scores = result
        return answers, metrics | {f"{prefix}_{name}": value for name, value in scores.items()}

    def answer_and_score(self, examples, features, stage: str) -> list:
        """Turn what the steps kept into answers, score them and write their files."""
        start = time.time()
        answers = self.to_answers(examples, features, stage)
        scores = self.score(answers)
        self.write(answers, stage)
        scores = {"postprocess_runtime": round(time.time() - start, 4)} | scores
        return [EvalPrediction(answers.predictions, answers.label_ids), scores]

    def to_answers(self, examples, features, stage: str) -> EvalPrediction:
        """Return the answers of `post_process_function`."""
        widths, group = self.evaluation_widths(features), eval_group(self.args)
        tables = [in_order(table, widths, group) for table in self.kept.tables()]
        return self.post_process_function(examples, features, self.predictions_of(tables), stage)

    def predictions_of(self, tables: list[np.ndarray]):
        """Return what the steps kept, (features, ...) each, as `post_process_function` takes it."""
        return tables

    def score(self, answers: EvalPrediction) -> dict[str, float]:
        """Return the metrics of the answers; none where the gold answers are not known."""
        known = self.answer_metrics is not None and answers.label_ids is not None
        return self.answer_metrics(answers) if known else {}

    def write(self, answers: EvalPrediction, stage: str) -> None:
        if self.write_answers is not None:
            self.write_answers(answers, stage)


class PreallocatedArrays:
    """Arrays that come in pieces, (batch, ...) each, of at most `total` rows in the end, in one table each from the start.

    The pieces themselves, between all that a step allocates and frees, would split the heap: a GB at 200,000 rows.
    """

    def __init__(self, total: int):
        self.total, self.count, self.arrays = total, 0, []

    def add(self, pieces: list[np.ndarray]) -> None:
        """Raises a ValueError for rows beyond the total."""
        if not self.arrays:
            self.arrays = [np.empty((self.total, *piece.shape[1:]), piece.dtype) for piece in pieces]
        before, self.count = self.count, self.count + len(pieces[0])
        if self.count > self.total:
            raise ValueError(f"got over {self.total} rows")
        for array, piece in zip(self.arrays, pieces):
            array[before : self.count] = piece

    def tables(self) -> list[np.ndarray]:
        return [array[: self.count] for array in self.arrays]


def in_order(predictions: np.ndarray, widths: np.ndarray | None, group: int) -> np.ndarray:
    """Predictions of `evaluation_order` in the order of the features."""
    if widths is None:
        return predictions
    result = np.empty_like(predictions, shape=(len(widths), *predictions.shape[1:]))
    result[evaluation_order(widths, group)[: len(widths)]] = predictions[: len(widths)]
    return result


class QuestionAnsweringTrainer(
    ResumedEpochs, BestCheckpoint, TrainingSpeed, AnswerEvaluation, JoinedSaves, trainer_class(False)
):
    """Trains and evaluates models that mark the answer in its context: GaudiTrainer's or Trainer's subclass.

    Args (beyond those of `AnswerEvaluation` and the base):
        n_best_size: the number of starts and ends of each feature that answers consist of.
    """

    def __init__(self, *args, n_best_size: int = 20, **kwargs):
        super().__init__(*args, **kwargs)
        self.n_best_size = n_best_size

    def answer(self, loader, features, examples, stage: str, ignore_keys, prefix: str) -> tuple[EvalPrediction, dict]:
        """As the base's; the loss is the mean over the features whose label is known, however they are batched."""
        answers, metrics = super().answer(loader, features, examples, stage, ignore_keys, prefix)
        if f"{prefix}_loss" in metrics:
            metrics[f"{prefix}_loss"] /= labelled_share(features)
        return answers, metrics

    def training_step(self, model, inputs, *args, **kwargs):
        for name in NOT_FOR_THE_MODEL:
            del inputs[name]
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss; of the logits what answers need is kept, a tenth: an evaluation of any size fits into memory."""
        places = [inputs.pop(name) for name in NOT_FOR_THE_MODEL]
        loss, logits, _ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if loss is not None:  # over no label at all it is NaN; `answer` divides by the share of all features
            share = (inputs["start_positions"] != IGNORED).float().mean().to(loss.device)
            loss = torch.where(share > 0, loss * share, torch.zeros_like(loss))
        if logits is not None:
            logits = tuple(side.float().cpu().numpy() for side in logits[:2])  # BART also returns its encoder's states
            cls_index, lengths = (tensor.cpu().numpy() for tensor in places)
            best = best_positions(logits, cls_index, self.n_best_size, lengths)
            self.keep(torch.from_numpy(best.packed()))
        return loss, None, None

    def predictions_of(self, tables: list[np.ndarray]) -> Candidates:
        (packed,) = tables
        return Candidates.unpacked(packed)
