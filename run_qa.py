#!/usr/bin/env python
"""Fine-tunes and evaluates a model that answers a question by marking the answer in a text.

    python run_qa.py --model_name_or_path bert-base-uncased --dataset_name squad --do_train --do_eval --output_dir out
    python run_qa.py --model_name_or_path out --validation_file my_questions.json --do_eval --output_dir scores
    python run_qa.py quickstart/config.yaml --train_file train.json --validation_file dev.json --output_dir out

Runs on a Gaudi with --use_habana, elsewhere on a GPU or the CPU. README.md tells the rest; --help lists the flags.
"""

from functools import partial

import qa.upstream  # noqa: F401  before anything that imports PyTorch


# isort: split
from qa.answers import Candidates, find_answers
from qa.arguments import DataArguments, ModelArguments
from qa.data import load_rows
from qa.device import trainer_extras
from qa.errors import run_or_exit
from qa.models import is_causal, load_config_and_tokenizer, load_marker, sequence_limit
from qa.stages import checkpoint_to_resume, hand_in, lay_out, report_check, run, score_answers, start
from qa.windows import read_template
from trainer_qa import QuestionAnsweringTrainer
from utils_qa import PaddingCollator, prepare_features


def main(argv: list[str] | None = None) -> None:
    model_args, data_args, args = start(argv, ModelArguments, DataArguments, description=__doc__)
    checkpoint = checkpoint_to_resume(args, data_args.length_buckets)
    rows, counts = load_rows(data_args, model_args, args)
    with args.main_process_first():  # it downloads, the others find what it downloaded
        config, tokenizer = load_config_and_tokenizer(model_args)
    extras = trainer_extras(args, model_args)
    causal = is_causal(config)
    length = sequence_limit(data_args, config, tokenizer, read_template(tokenizer, causal).special_tokens)
    settings = (tokenizer, length, data_args.doc_stride, causal)
    features = {split: prepare_features(rows[split], *settings) for split in rows}
    lay_out(features, data_args, args, length)
    if data_args.check:
        return report_check(features, args)

    trainer = QuestionAnsweringTrainer(
        model=load_marker(config, model_args),
        args=args,
        train_dataset=features.get("train"),
        eval_dataset=features.get("validation"),
        eval_examples=rows.get("validation"),
        processing_class=tokenizer,
        data_collator=PaddingCollator(
            tokenizer, length if data_args.pad_to_max_length else None, 8 if args.fp16 else 1
        ),
        post_process_function=partial(answers_of_candidates, data_args, args),
        compute_metrics=partial(score_answers, data_args),
        n_best_size=data_args.n_best_size,
        **extras,
    )
    run(trainer, data_args, model_args, checkpoint, features.get("test"), rows.get("test"), counts)


def answers_of_candidates(data: DataArguments, args, examples, features, candidates: list, stage: str):
    """The answers that the logits point at, in files and in the metrics' form."""
    candidates = Candidates.unpacked(*candidates)
    settings = (data.version_2_with_negative, data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
    return hand_in(find_answers(examples, features, candidates, *settings), examples, data, args.output_dir, stage)


if __name__ == "__main__":
    run_or_exit(main)
