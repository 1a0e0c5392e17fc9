"""The stages of a run, the same for both scripts: train, evaluate, predict, report."""

import logging
from pathlib import Path

import numpy as np
from transformers.trainer_utils import EvalPrediction

from qa.answer_files import write_table
from qa.answer_table import AnswerTable, make_table, window_counts
from qa.answers import Answers, write_answers
from qa.arguments import PREFIXES, DataArguments, ModelArguments
from qa.buckets import train_group
from qa.card import write_card
from qa.data import gold_answers
from qa.earlier import remove_answers, remove_earlier_run, remove_report
from qa.errors import UserError
from qa.files import read_object, write_results
from qa.finished import mark_unfinished, note_replaced
from qa.finite import check_weights
from qa.graphs import allow_graphs, forget_graphs
from qa.identity import write_record
from qa.locks import unlock
from qa.lora import has_adapters, trained_parameters
from qa.metrics import score, sigmoid
from qa.push import push
from qa.report import report_evaluation
from qa.saving import begin, end
from qa.screen import print_summary, report_features, report_shapes, report_stage
from qa.script import collect_again
from qa.signals import REQUEST, signals_can_wait
from qa.stopping import command_to_go_on
from qa.tuning import tune
from qa.watching import watched


logger = logging.getLogger(__name__)


class ScoredForm(EvalPrediction):
    """Answers in the form of the SQuAD metrics, lists of dicts; `answers` holds them as they were found.

    Attributes:
        table: of the answers; None until `write_stage` has made it.
    """

    table: AnswerTable | None = None

    def __init__(self, answers: Answers, examples, features, predictions: list[dict], references: list[dict] | None):
        super().__init__(predictions=predictions, label_ids=references)
        self.answers, self.examples, self.features = answers, examples, features


def format_for_metric(answers: Answers, examples, features) -> ScoredForm:
    """Return the answers and the gold answers (None where not known) in the form that the SQuAD metrics take.

    With negatives a prediction has the probability that there is no answer, the sigmoid of its null odds.
    """
    predictions = [{"id": name, "prediction_text": text} for name, text in answers.texts.items()]
    odds = np.array(list(answers.null_odds.values()))
    for prediction, probability in zip(predictions, sigmoid(odds).tolist()):
        prediction["no_answer_probability"] = probability
    golds = [gold_answers(example) for example in examples]
    references = [{"id": example["id"], "answers": gold} for example, gold in zip(examples, golds)]
    references = None if any(gold is None for gold in golds) else references
    return ScoredForm(answers, examples, features, predictions=predictions, references=references)


def score_answers(data_args: DataArguments, prediction: ScoredForm) -> dict[str, float]:
    """Return the scores of the answers."""
    golds = {reference["id"]: list(reference["answers"]["text"]) for reference in prediction.label_ids}
    return score(prediction.answers, golds, data_args.version_2_with_negative, data_args.answer_language)


def write_stage(output_dir: str, data_args: DataArguments, prediction: ScoredForm, stage: str) -> None:
    """Write the answer files of a stage."""
    golds = prediction.label_ids and [reference["answers"] for reference in prediction.label_ids]
    windows = window_counts(prediction.features, list(prediction.answers.texts))
    prediction.table = make_table(
        prediction.answers, prediction.examples, windows, golds=golds, language=data_args.answer_language
    )
    write_answers(prediction.answers, output_dir, prefix=stage)
    write_table(Path(output_dir), stage, prediction.table)


def lay_out(features: dict, data_args: DataArguments, training_args, length: int) -> None:
    """Allow the graphs of all shapes of features, and log how many features there are and their padding.

    Args:
        length: tokens of a feature at most.

    Raises:
        UserError: dropping the last batch leaves no batch to train on.
    """
    if training_args.torch_compile:
        forget_graphs()
    if training_args.use_habana and training_args.torch_compile and training_args.cache_size_limit is None:
        allow_graphs(features, one_length=data_args.pad_to_max_length)
    report_features(features, training_args, data_args.pad_to_max_length, length)
    number, group = len(features.get("train", ())), train_group(training_args)
    if training_args.dataloader_drop_last and 0 < number < group:
        raise UserError(f"--dataloader_drop_last drops all {number} features of the training: a step takes {group}")


def trainer_data(features: dict, rows: dict) -> dict:
    """Return the arguments of a trainer that hold data: features to train on, features and rows to evaluate on."""
    evaluated = {"eval_dataset": features.get("validation"), "eval_examples": rows.get("validation")}
    return {"train_dataset": features.get("train"), **evaluated}


def train(trainer, checkpoint: str | None, most: int | None, counts: dict[str, int]) -> dict:
    """Train, and save the model, the tokenizer, `train_results.json`, a card and the trainer's state; return the metrics.

    The state comes last: it marks the training as finished. A training of no step has no results.
    """
    if trainer.is_world_process_zero():
        mark_unfinished(Path(trainer.args.output_dir))
    again = command_to_go_on(trainer.args)
    with signals_can_wait(again):  # also after the last step, where there may be no checkpoint
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        if trainer.args.merge_lora:
            merge_adapters(trainer.model)
        trainer.save_model()
        if "train_loss" in metrics:
            save_results(trainer, "train", metrics, trainer.train_dataset, most, counts)
        if trainer.is_world_process_zero():
            describe(trainer)  # for a run that is killed in its evaluation; the card gets the scores at the end
        trainer.save_state()
        trainer.accelerator.wait_for_everyone()  # The launcher ends the others as soon as one rank has failed.
    return metrics


def evaluate(trainer, model_args: ModelArguments, data_args: DataArguments, counts: dict[str, int]) -> dict:
    """Answer and score the validation questions, and write the report and `eval_results.json`; return the metrics.

    The results come last: they mark the evaluation as finished.
    """
    folder = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        remove_report(folder, "eval")
    metrics = trainer.evaluate()
    if data_args.eval_report and trainer.answered is not None:
        report_evaluation(trainer, model_args, data_args, metrics)
    trainer.answered = None
    return save_results(trainer, "eval", metrics, trainer.eval_dataset, data_args.max_eval_samples, counts)


def predict(trainer, features, examples, most: int | None, counts: dict[str, int]) -> dict:
    """Answer the test questions, and write `predict_results.json`; return the metrics."""
    return save_results(trainer, "predict", trainer.predict(features, examples).metrics, features, most, counts)


def save_results(trainer, stage: str, metrics: dict, features, most: int | None, counts: dict[str, int]) -> dict:
    """Write the metrics of a stage to `{stage}_results.json` and `all_results.json`, and log them in a line."""
    metrics[f"{stage}_samples"] = min(most or len(features), len(features))
    metrics |= {f"{stage}_{name}": count for name, count in counts.items()}
    prefix = PREFIXES[stage]
    if shapes := (trainer.trained_shapes if stage == "train" else trainer.evaluated_shapes).report():
        metrics[f"{prefix}_shapes_runtime"] = shapes
    report_stage(stage, metrics)
    if shapes and trainer.args.use_habana:
        report_shapes(stage, shapes)
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        write_results(folder, stage, metrics)
        if f"{prefix}_postprocess_runtime" not in metrics:  # there are no answers
            remove_answers(folder, stage)
    return metrics


@watched
def run(
    trainer,
    data_args: DataArguments,
    model_args: ModelArguments,
    checkpoint: str | None,
    record: dict | None,
    features: dict,
    rows: dict,
    counts: dict,
) -> dict[str, float]:
    """Train, evaluate and predict, as the flags say; write the model card, print the summary and upload; return the results.

    Args:
        checkpoint: to resume from, None to start with the model.
        record: of the training, see `qa.identity.identify`.
        features, rows: by split.
        counts: those of `load_rows`, for the results of each stage.

    Returns:
        The content of `all_results.json`: earlier results of the folder are among them.
    """
    collect_again()
    training_args, metrics = trainer.args, {}
    check_weights(trainer.model, model_args.model_name_or_path)
    if training_args.do_train:
        begin_training(trainer, [model_args, data_args], checkpoint, record)
        lost = getattr(features["train"], "lost_rows", 0)
        more = {"questions_without_window": lost} if lost else {}
        if has_adapters(trainer.model):
            more["parameters"] = report_trained(trainer.model)
        metrics |= train(trainer, checkpoint, data_args.max_train_samples, counts["train"] | more)
    elif record is not None:  # on rank 0, of a finished training: what is missing is answered as the flags say now
        trainer.state.epoch = read_object(Path(training_args.output_dir) / "trainer_state.json").get("epoch")
        trainer.write_settings(training_args.output_dir)
    elif trainer.is_world_process_zero():
        note_replaced(training_args)
    if record is not None:
        again = command_to_go_on(training_args)
        REQUEST.circumstances = f"the training is finished, and {again} goes on from there"
    if "tuning" in features:
        tune(trainer, data_args, features["tuning"], rows["tuning"])
    if training_args.do_eval:
        metrics |= evaluate(trainer, model_args, data_args, counts["validation"])
    if training_args.do_predict:
        metrics |= predict(trainer, features["test"], rows["test"], data_args.max_predict_samples, counts["test"])
    if record is not None:  # of a training, which an earlier command may have done
        describe(trainer)
    if training_args.push_to_hub and not training_args.do_train and not is_saved(model_args, training_args):
        trainer.save_model()
    if trainer.is_world_process_zero():
        end(Path(training_args.output_dir))
    print_summary(training_args, trainer.state, metrics)
    try:
        if training_args.push_to_hub:
            push(trainer)
    finally:
        unlock(Path(training_args.output_dir))
    return read_object(Path(training_args.output_dir) / "all_results.json") | metrics


def describe(trainer) -> None:
    """Write the model card."""
    folder = Path(trainer.args.output_dir)
    write_card(folder, getattr(trainer, "hub_model_id", None) or folder.resolve().name, trainer.model.config)


def is_saved(model_args: ModelArguments, training_args) -> bool:
    """Return whether the model of a run is the one in its output folder."""
    return Path(model_args.model_name_or_path).resolve() == Path(training_args.output_dir).resolve()


def begin_training(trainer, named_by: list, checkpoint: str | None, record: dict | None) -> None:
    """Begin an unfinished run on rank 0 and write `run.json`, with --overwrite_output_dir in place of an earlier run.

    Args:
        named_by: arguments whose paths a training reads, also where they are in the output folder.
    """
    if record is None:
        return
    folder = Path(trainer.args.output_dir)
    begin(folder)
    if trainer.args.overwrite_output_dir:
        values = [value for arguments in named_by for value in vars(arguments).values()]
        remove_earlier_run(folder, [value for value in [*values, checkpoint] if isinstance(value, str)])
    trainer.run_record = record
    write_record(folder, record)


def merge_adapters(model) -> None:
    """Add the adapters of a model to its weights."""
    if has_adapters(model):
        model.merge()
    else:
        logger.warning("--merge_lora has no effect: the model has no adapters")


def report_trained(model) -> int:
    """Log how many parameters of a model with adapters are trained, and return that."""
    trained, every = trained_parameters(model)
    logger.info(f"LoRA: {trained:,} of {every:,} parameters are trained ({trained / every:.2%})")
    return trained
