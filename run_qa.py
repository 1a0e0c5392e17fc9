#!/usr/bin/env python
"""Fine-tunes and evaluates a model that answers a question by marking the answer in a text.

    python run_qa.py --model_name_or_path bert-base-uncased --dataset_name squad --do_train --do_eval --output_dir out
    python run_qa.py --model_name_or_path out --validation_file my_questions.json --do_eval --output_dir scores
    python run_qa.py quickstart/config.yaml --train_file train.json --validation_file dev.json --output_dir out

Runs on a Gaudi with --use_habana, elsewhere on a GPU or the CPU. README.md tells the rest; --help lists the flags.
"""

import sys
from functools import partial

import numpy as np
from transformers import AutoModelForQuestionAnswering, EvalPrediction, set_seed

from arguments_qa import DataArguments, ModelArguments, check_arguments, parse_command_line, start_logging
from data_qa import load_rows
from device_qa import trainer_extras, training_arguments
from errors_qa import run_or_exit
from models_qa import load_config_and_tokenizer, load_model, sequence_limit
from trainer_qa import QuestionAnsweringTrainer, checkpoint_to_resume, run
from utils_qa import PaddingCollator, find_answers, prepare_features, write_answers


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, args = parse_command_line(argv, ModelArguments, DataArguments, training_arguments())
    check_arguments(data_args, args)
    checkpoint = checkpoint_to_resume(args)
    start_logging(args)
    set_seed(args.seed)

    rows = load_rows(data_args, model_args, args)
    config, tokenizer = load_config_and_tokenizer(model_args)
    length = sequence_limit(data_args, config, tokenizer)
    features = {split: prepare_features(rows[split], tokenizer, length, data_args.doc_stride) for split in rows}

    trainer = QuestionAnsweringTrainer(
        model=load_model(AutoModelForQuestionAnswering, config, model_args),
        args=args,
        train_dataset=features.get("train"),
        eval_dataset=features.get("validation"),
        eval_examples=rows.get("validation"),
        processing_class=tokenizer,
        data_collator=PaddingCollator(
            tokenizer, length if data_args.pad_to_max_length else None, 8 if args.fp16 else 1
        ),
        post_process_function=partial(answers_of_logits, data_args, args),
        compute_metrics=partial(score_answers, data_args),
        **trainer_extras(args, model_args),
    )
    run(trainer, data_args, model_args, checkpoint, features.get("test"), rows.get("test"))


def answers_of_logits(data: DataArguments, args, examples, features, logits, stage: str) -> EvalPrediction:
    """Writes the answer files of a stage; returns the answers and the gold answers in the metrics' form.

    With negatives the metric gets the best text and, from its null odds, the probability that there is no answer; its
    threshold then empties the same answers as `null_score_diff_threshold` does in the files.
    """
    settings = (data.version_2_with_negative, data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
    answers = find_answers(examples, features, logits, *settings)
    write_answers(answers, args.output_dir, prefix=stage)
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


if __name__ == "__main__":
    run_or_exit(main)
