"""Trainers that answer questions when they evaluate, and the steps that both scripts take with them."""

import json
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction, PredictionOutput

from arguments_qa import DataArguments, ModelArguments
from buckets_qa import Order, eval_group, evaluation_order, train_group, training_order
from device_qa import trainer_class
from errors_qa import UserError
from speed_qa import TrainingSpeed, evaluation_speed
from utils_qa import Answers, best_positions, write_answers


logger = logging.getLogger(__name__)

# What optimum-habana 1.21.2 leaves among the metrics: a time of day, and a duration (misspelt) that it means to leave out
# of the throughput but looks for under another name. `evaluation_speed` counts without that.
STRAY_METRICS = ("_end_time", "_graph_compliation_duration")


class LengthBuckets:
    """Mixin for a trainer: batches of one width where the features have widths, else the trainer's own.

    Not by accelerate's epoch, which is 0 again when a run resumes within a later one (1.10.1, `skip_first_batches`).
    """

    def _set_signature_columns_if_needed(self) -> None:
        """What collators read besides the model's inputs."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*self._signature_columns, "width", "cls_index"})

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        widths = getattr(dataset, "widths", None)
        if widths is None:
            return super()._get_train_sampler(dataset)
        order = partial(self.order_of_epoch, widths)
        return Order(order, len(order()))

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
        return Order(order, len(order()))

    def evaluation_widths(self, dataset) -> np.ndarray | None:
        """Those of the features; one for all, so that no batch is a short one, where --dataloader_drop_last drops those."""
        widths = getattr(dataset, "widths", None)
        return np.zeros(len(dataset)) if widths is None and self.args.dataloader_drop_last else widths


class ResumedEpochs:
    """Mixin for a trainer: also an epoch that a run resumes within takes its last update, of fewer batches than the others.

    transformers 4.55 and optimum-habana 1.21.2 look for a whole epoch's number of batches there, so the gradients stayed
    for the next epoch's first update. Before each batch both look whether `gradient_accumulation_steps` divides how many
    they have had: for these batches it is a number that divides but their last.
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


class AnswerEvaluation(LengthBuckets):
    """Mixin for a trainer: `evaluate` and `predict` turn what the model puts out into answers and score them.

    Args (beyond the trainer's own):
        eval_examples: the rows that `eval_dataset` holds the features of.
        post_process_function: `(examples, features, predictions, stage)` -> `EvalPrediction` of answers and references;
            `stage` is "eval" or "predict". References are None where the data has no answers.
        compute_metrics: `EvalPrediction` of answers and references -> {name: value}.
    """

    def __init__(
        self,
        *args,
        eval_examples=None,
        post_process_function: Callable | None = None,
        compute_metrics: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)  # without compute_metrics: the loop would feed it logits, not answers
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function
        self.answer_metrics = compute_metrics

    def save_model(self, *args, **kwargs) -> None:
        """As the base's, on all ranks together: transformers 4.55 lets each look whether the folder of the best model is
        there, and those that look before rank 0 has made it go on without the best model, or wait for ever."""
        super().save_model(*args, **kwargs)
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, *args, **kwargs) -> None:
        """As the base's, on all ranks together: the state that rank 0 writes next says that a checkpoint is complete."""
        super()._save_rng_state(*args, **kwargs)
        self.accelerator.wait_for_everyone()

    def prediction_step(self, *args, **kwargs):
        self.begun.append(time.time())
        return super().prediction_step(*args, **kwargs)

    def keep(self, *tensors: torch.Tensor) -> None:
        """Keeps what a step puts out, (batch, ...) each of every rank, for the answers.

        The libraries' loops would copy all that they have with every batch, and optimum-habana 1.21.2 gives all tensors the
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
        """Evaluates, logs and returns the metrics: loss, speed and, of the answers, what `compute_metrics` gives."""
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
        """Answers the questions of `predict_examples`; metrics of the answers only where gold answers are known."""
        loader = self.get_test_dataloader(predict_dataset)
        answers, metrics = self.answer(
            loader, predict_dataset, predict_examples, "predict", ignore_keys, metric_key_prefix
        )
        return PredictionOutput(predictions=answers.predictions, label_ids=answers.label_ids, metrics=metrics)

    def answer(self, loader, features, examples, stage: str, ignore_keys, prefix: str) -> tuple[EvalPrediction, dict]:
        """Runs the model over `loader`; on rank 0 turns its output into answers and scores; all ranks get both."""
        group = eval_group(self.args)
        start, self.begun, self.kept = time.time(), [], Rows(-(-len(features) // group) * group)
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
            start = time.time()
            widths = self.evaluation_widths(features)
            predictions = [in_order(table, widths, group) for table in self.kept.tables()]
            answers = self.post_process_function(examples, features, predictions, stage)
            scored = self.answer_metrics is not None and answers.label_ids is not None
            scores = self.answer_metrics(answers) if scored else {}
            result = [answers, {"postprocess_runtime": round(time.time() - start, 4)} | scores]
        self.kept = None
        if self.args.world_size > 1:
            broadcast_object_list(result)
        answers, scores = result
        return answers, metrics | {f"{prefix}_{name}": value for name, value in scores.items()}


class Rows:
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


class QuestionAnsweringTrainer(ResumedEpochs, TrainingSpeed, AnswerEvaluation, trainer_class(False)):
    """Trains and evaluates models that mark the answer in its context: GaudiTrainer's or Trainer's subclass.

    Args (beyond those of `AnswerEvaluation` and the base):
        n_best_size: how many starts and ends of each feature the answers are made of.
    """

    def __init__(self, *args, n_best_size: int = 20, **kwargs):
        super().__init__(*args, **kwargs)
        self.n_best_size = n_best_size

    def training_step(self, model, inputs, *args, **kwargs):
        del inputs["cls_index"]  # no input of the model's
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss; of the logits what answers need is kept, a tenth: an evaluation of any size fits into memory."""
        cls_index = inputs.pop("cls_index")
        loss, logits, _ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is not None:
            logits = tuple(side.float().cpu().numpy() for side in logits[:2])  # BART gives its encoder's states too
            best = best_positions(logits, cls_index.cpu().numpy(), self.n_best_size)
            self.keep(torch.from_numpy(best.packed()))
        return loss, None, None


# ---------------------------------------------------------------------------------------------------------------------
# What a script does with its trainer


def checkpoint_to_resume(args, buckets: list[str] | None) -> str | None:
    """Where training goes on: the checkpoint that the flags name, else the last complete one in `output_dir`.

    Raises:
        UserError: `output_dir` holds something else, and --overwrite_output_dir is not given; or with length `buckets` the
            checkpoint's run had batches of another size, which transformers 4.55 goes on with.
    """
    checkpoint = named_or_last_checkpoint(args)
    if checkpoint is not None and buckets is not None and args.do_train:
        size = json.loads((Path(checkpoint) / "trainer_state.json").read_text()).get("train_batch_size")
        if size not in (None, args.train_batch_size):
            raise UserError(
                f"--per_device_train_batch_size {args.per_device_train_batch_size}: the run of {checkpoint} has "
                f"{size // max(1, args.n_gpu)}, by which --length_buckets is laid out; resume with that"
            )
    return checkpoint


def named_or_last_checkpoint(args) -> str | None:
    named = args.resume_from_checkpoint
    if named is not None and named.lower() not in ("true", "false"):
        if not is_complete(Path(named)):
            raise UserError(f"--resume_from_checkpoint {named}: there is no complete checkpoint (trainer_state.json)")
        return named
    folder = Path(args.output_dir)
    if not args.do_train or args.overwrite_output_dir or not folder.is_dir():
        return None
    last = last_checkpoint(folder)
    if last is not None:
        logger.warning(f"Resuming from {last}; with --overwrite_output_dir training starts anew")
        return str(last)
    if any(folder.iterdir()):
        raise UserError(
            f"--output_dir {folder} holds files but no complete checkpoint to resume from; name another folder, "
            "or start anew with --overwrite_output_dir"
        )
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    numbered = {path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"): path for path in folder.iterdir()}
    complete = [(int(step), path) for step, path in numbered.items() if step.isdigit() and is_complete(path)]
    return max(complete)[1] if complete else None


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer's state is its last file."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def hand_in(parts: Iterable[Answers], examples, data: DataArguments, output_dir: str, stage: str) -> EvalPrediction:
    """Writes the answer files of a stage; returns answers and gold answers (None where not known) in the metrics' form.

    With negatives the metric gets the best text and, from its null odds, the probability that there is no answer; its
    threshold then empties the same answers as `null_score_diff_threshold` does in the files.
    """
    answers = write_answers(parts, output_dir, prefix=stage)
    predictions = [{"id": identity, "prediction_text": text} for identity, text in answers.texts.items()]
    if data.version_2_with_negative:
        for prediction, odds in zip(predictions, answers.null_odds.values()):
            prediction["prediction_text"] = answers.best_texts[prediction["id"]]
            prediction["no_answer_probability"] = sigmoid(odds)
    answered = [bool(example["answers"]["text"]) for example in examples]
    known = any(answered) if data.version_2_with_negative else all(answered)
    references = [{"id": example["id"], "answers": example["answers"]} for example in examples] if known else None
    return EvalPrediction(predictions=predictions, label_ids=references)


def score_answers(data: DataArguments, answers: EvalPrediction) -> dict[str, float]:
    """EM and F1, with negatives those of SQuAD 2.0."""
    from metrics_qa import load_metric  # imports evaluate, which only a scored run needs

    options = {"no_answer_threshold": sigmoid(data.null_score_diff_threshold)} if data.version_2_with_negative else {}
    metric = load_metric(data.version_2_with_negative)
    return metric.compute(predictions=answers.predictions, references=answers.label_ids, **options)


def sigmoid(odds: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -odds)))  # without overflow


def check_enough(features: dict, args) -> None:
    """Raises a UserError where dropping the last batch leaves no batch to train on."""
    number, group = len(features.get("train", ())), train_group(args)
    if args.dataloader_drop_last and 0 < number < group:
        raise UserError(f"--dataloader_drop_last drops all {number} features of the training: a step takes {group}")


def tell_checked(features: dict, args) -> None:
    """What `--check` ends with: how much there is of each part; one rank tells it."""
    counts = ", ".join(f"{len(part)} {split} features" for split, part in features.items())
    if args.process_index == 0:
        print(f"checked, a run could start: {counts}")


def train(trainer, checkpoint: str | None, most: int | None) -> None:
    """Trains, and saves the model, the tokenizer, the trainer's state and `train_results.json`."""
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_model()
    report(trainer, "train", metrics, trainer.train_dataset, most)
    trainer.save_state()


def report(trainer, stage: str, metrics: dict, features, most: int | None) -> None:
    """Prints the metrics of a stage and writes them to `{stage}_results.json` and `all_results.json`."""
    metrics[f"{stage}_samples"] = min(most or len(features), len(features))
    trainer.log_metrics(stage, metrics)
    trainer.save_metrics(stage, metrics)


def run(
    trainer, data: DataArguments, model: ModelArguments, checkpoint: str | None, test_features, test_examples
) -> None:
    """Trains, evaluates and predicts, as the flags say, and writes the model card."""
    if trainer.args.do_train:
        train(trainer, checkpoint, data.max_train_samples)
    if trainer.args.do_eval:
        report(trainer, "eval", trainer.evaluate(), trainer.eval_dataset, data.max_eval_samples)
    if trainer.args.do_predict:
        metrics = trainer.predict(test_features, test_examples).metrics
        report(trainer, "predict", metrics, test_features, data.max_predict_samples)
    card = {"tasks": "question-answering"}
    if not Path(model.model_name_or_path).exists():  # a hub name; the card looks its licence up there
        card["finetuned_from"] = model.model_name_or_path
    if data.dataset_name is not None:
        config = data.dataset_config_name
        card |= {"dataset_tags": data.dataset_name, "dataset": " ".join(filter(None, (data.dataset_name, config)))}
        card |= {"dataset_args": config} if config else {}
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
