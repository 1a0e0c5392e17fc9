"""The stages of a run, the same for both scripts: resume, train, evaluate, predict, report."""

import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import transformers
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction

from qa.answers import Answers, write_answers
from qa.arguments import DataArguments, ModelArguments, parse_command_line, with_file
from qa.buckets import train_group
from qa.checks import check_arguments
from qa.device import settle_lazy_mode, training_arguments
from qa.errors import UserError


logger = logging.getLogger(__name__)


def start(argv: list[str] | None, model_type: type, data_type: type, seq2seq: bool = False) -> tuple:
    """What a script does first: reads and checks its command line, and the device; starts the log and seeds.

    Returns the model's, the data's and the training's arguments.
    """
    argv = settle_lazy_mode(with_file(sys.argv[1:] if argv is None else argv))
    model, data, training = parse_command_line(argv, model_type, data_type, training_arguments(seq2seq))
    check_arguments(data, training)
    start_logging(training)
    transformers.set_seed(training.seed)
    return model, data, training


def start_logging(training) -> None:
    """One format for the log of the scripts and of the libraries, at the level that `--log_level` asks of this rank."""
    logging.basicConfig(
        format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", datefmt="%m/%d/%Y %H:%M:%S", stream=sys.stdout
    )
    logging.getLogger("huggingface_hub").handlers.clear()  # its own would tell everything a second time
    level = training.get_process_log_level()
    if training.should_log and training.log_level == "passive":
        level = logging.INFO
        for chatty in (
            "configuration_utils",
            "modeling_utils",
            "tokenization_utils_base",
            "generation.configuration_utils",
        ):
            logging.getLogger(f"transformers.{chatty}").setLevel(logging.WARNING)
    logging.getLogger().setLevel(level)
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_default_handler()
    transformers.utils.logging.enable_explicit_format()


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
    from qa.metrics import load_metric  # imports evaluate, which only a scored run needs

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
