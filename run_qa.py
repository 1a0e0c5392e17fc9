#!/usr/bin/env python
"""Fine-tune and evaluate a model that answers a question by marking the answer in a text.

    python run_qa.py --model_name_or_path bert-base-uncased --dataset_name squad --do_train --do_eval --output_dir out
    python run_qa.py --model_name_or_path out --validation_file my_questions.json --do_eval --output_dir scores
    python run_qa.py quickstart/config.yaml --train_file train.json --validation_file dev.json --output_dir out

Runs on a Gaudi with --use_habana, elsewhere on a GPU or the CPU. README.md explains more; --help lists the flags.
"""

from functools import partial
from pathlib import Path


if __name__ == "__main__":
    from qa.script import begin_script

    begin_script()

import qa.upstream  # noqa: F401  before anything that imports PyTorch


# isort: split
from qa.answer_lengths import report_spans
from qa.answers import AnswerRules, find_answers
from qa.arguments import ModelArguments, SpanDataArguments
from qa.candidates import Candidates
from qa.device import trainer_extras
from qa.errors import run_or_exit
from qa.files import read_object
from qa.finished import finished_training, keep_only_missing
from qa.identity import identify
from qa.packing import PackingCollator
from qa.preparation import prepare, read_rows
from qa.process import run_of_its_own
from qa.resume import checkpoint_to_resume
from qa.room import check_room
from qa.settings import make_settings
from qa.stages import (
    ScoredForm,
    format_for_metric,
    lay_out,
    run,
    score_answers,
    trainer_data,
    write_stage,
)
from qa.start import start
from qa.windows import read_template
from utils_qa import PaddingCollator, prepare_features


@run_of_its_own()
def main(argv: list[str] | None = None) -> dict[str, float] | None:
    """Run a command line, by default the process's own; return its results as in `all_results.json`, for --check None."""
    model_args, data_args, training_args = start(argv, ModelArguments, SpanDataArguments, description=__doc__)
    finished = finished_training(training_args)
    checkpoint = finished or checkpoint_to_resume(training_args, data_args.laid_out_by())
    rows, counts = read_rows(data_args, model_args, training_args)

    # Imported only now: they take seconds, and mistakes in the flags and the data are reported first.
    from transformers import AutoModelForQuestionAnswering

    from qa.advice import advise_start
    from qa.attention import set_attention
    from qa.models import check_model, is_causal, load_config_and_tokenizer, load_extractive_model, sequence_limit
    from qa.packed_model import find_packed_form, pack_model
    from qa.plan import make_plan, report_plan
    from qa.weightless import check_batches
    from trainer_qa import QuestionAnsweringTrainer

    with training_args.main_process_first():  # it downloads the files, the others find them in the cache
        config, tokenizer = load_config_and_tokenizer(model_args)
    set_attention(AutoModelForQuestionAnswering, config, model_args, training_args.attn_implementation)
    extras = trainer_extras(training_args, model_args)
    flags = {"remote": data_args.check, "checkpointing": training_args.checkpoints_layers}
    weightless = check_model(AutoModelForQuestionAnswering, config, tokenizer, model_args, **flags)
    record = identify(
        argv, checkpoint, model_args, data_args, training_args, rows=rows, config=config, tokenizer=tokenizer
    )
    if finished and not keep_only_missing(model_args, data_args, training_args, rows, record, config):
        return None if data_args.check else read_object(Path(training_args.output_dir) / "all_results.json")
    if training_args.do_train and checkpoint is None and training_args.process_index == 0:
        advise_start(config, model_args, rows["train"])
    causal = is_causal(config)
    length = sequence_limit(data_args, weightless, tokenizer, template=read_template(tokenizer, causal))
    form = None
    if data_args.pack:
        form = find_packed_form(AutoModelForQuestionAnswering, config, length, model_args.trust_remote_code)
    features = prepare(
        rows,
        data_args,
        training_args,
        length,
        of_split=lambda _, part: prepare_features(
            part, tokenizer, max_seq_length=length, doc_stride=data_args.doc_stride, causal=causal
        ),
        report=partial(report_spans, max_answer_length=data_args.max_answer_length, window=length),
    )
    lay_out(features, data_args, training_args, length)
    if form is not None:
        collator, weightless = PackingCollator(tokenizer, form.first_position), pack_model(weightless, form)
    else:
        collator = PaddingCollator(
            tokenizer,
            length=length if data_args.pad_to_max_length else None,
            multiple_of=8 if training_args.fp16 else 1,
        )
    check_batches(weightless, features, collator)
    check_room(weightless, features, training_args)

    def make_trainer(args):
        model = load_extractive_model(config, model_args)
        return QuestionAnsweringTrainer(
            model=model if form is None else pack_model(model, form),
            args=args,
            **trainer_data(features, rows),
            processing_class=tokenizer,
            data_collator=collator,
            post_process_function=partial(to_answers, data_args),
            compute_metrics=partial(score_answers, data_args),
            write_answers=partial(write_stage, training_args.output_dir, data_args),
            make_settings=partial(make_settings, data_args, "span", length),
            n_best_size=data_args.n_best_size,
            **extras,
        )

    if data_args.check:
        plan = make_plan(weightless, features, collator, tokenizer, training_args, checkpoint)
        return report_plan(plan, features, training_args, make_trainer, data_args.check_steps)

    return run(make_trainer(training_args), data_args, model_args, checkpoint, record, features, rows, counts)


def to_answers(data_args: SpanDataArguments, examples, features, candidates: Candidates, stage: str) -> ScoredForm:
    """Return the answers that the logits point at, in the metrics' form."""
    rules = AnswerRules.of(data_args)
    return format_for_metric(find_answers(examples, features, candidates, rules), examples, features)


if __name__ == "__main__":
    run_or_exit(main)
