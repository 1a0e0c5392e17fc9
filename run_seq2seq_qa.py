#!/usr/bin/env python
"""Fine-tune and evaluate an encoder-decoder (T5, BART) that reads a question and a text and writes the answer.

    python run_seq2seq_qa.py --model_name_or_path t5-small --dataset_name squad_v2 --version_2_with_negative \\
        --do_train --do_eval --predict_with_generate --output_dir out
    python run_seq2seq_qa.py --model_name_or_path out --test_file my_questions.json --do_predict \\
        --predict_with_generate --output_dir answers

Runs on a Gaudi with --use_habana, elsewhere on a GPU or the CPU. README.md explains more; --help lists the flags.
"""

import logging
from functools import partial
from pathlib import Path


if __name__ == "__main__":
    from qa.script import begin_script

    begin_script()

import qa.upstream  # noqa: F401  before anything that imports PyTorch


# isort: split
from qa.answer_lengths import report_targets
from qa.arguments import Seq2SeqDataArguments, Seq2SeqModelArguments
from qa.device import trainer_extras
from qa.errors import run_or_exit
from qa.files import read_object
from qa.finished import finished_training, keep_only_missing
from qa.generation import empty_answer, read_generation_config, set_generation_config, set_language
from qa.identity import identify
from qa.preparation import prepare, read_rows
from qa.process import run_of_its_own
from qa.resume import checkpoint_to_resume
from qa.room import check_room
from qa.seq2seq import Seq2SeqCollator, choose_windows, prepare_seq2seq_features, read_seq2seq_template
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


logger = logging.getLogger(__name__)


@run_of_its_own()
def main(argv: list[str] | None = None) -> dict[str, float] | None:
    """Run a command line, by default the process's own; return its results as in `all_results.json`, for --check None."""
    model_args, data_args, training_args = start(
        argv, Seq2SeqModelArguments, Seq2SeqDataArguments, seq2seq=True, description=__doc__
    )
    set_generation(data_args, training_args)
    finished = finished_training(training_args)
    checkpoint = finished or checkpoint_to_resume(training_args, data_args.laid_out_by())
    rows, counts = read_rows(data_args, model_args, training_args)

    # Imported only now: they take seconds, and mistakes in the flags and the data are reported first.
    from transformers import AutoModelForSeq2SeqLM

    from qa.attention import set_attention
    from qa.models import check_model, load_config_and_tokenizer, load_seq2seq_model, sequence_limit
    from qa.plan import make_plan, report_plan
    from qa.weightless import check_batches
    from trainer_seq2seq_qa import QuestionAnsweringSeq2SeqTrainer

    with training_args.main_process_first():  # it downloads the files, the others find them in the cache
        config, tokenizer = load_config_and_tokenizer(model_args)
    set_attention(AutoModelForSeq2SeqLM, config, model_args, training_args.attn_implementation)
    extras = trainer_extras(training_args, model_args)
    set_language(tokenizer, data_args.language_code)
    generation = read_generation_config(config, tokenizer, model_args, training_args)
    flags = {"remote": data_args.check, "checkpointing": training_args.checkpoints_layers}
    weightless = check_model(AutoModelForSeq2SeqLM, config, tokenizer, model_args, **flags)
    record = identify(
        argv, checkpoint, model_args, data_args, training_args, rows=rows, config=config, tokenizer=tokenizer
    )
    if finished and not keep_only_missing(model_args, data_args, training_args, rows, record, config):
        return None if data_args.check else read_object(Path(training_args.output_dir) / "all_results.json")
    length = sequence_limit(data_args, weightless, tokenizer, template=read_seq2seq_template(tokenizer))
    features = prepare(
        rows,
        data_args,
        training_args,
        length,
        of_split=lambda split, part: prepare_seq2seq_features(
            part,
            tokenizer,
            max_seq_length=length,
            doc_stride=data_args.doc_stride,
            max_answer_length=data_args.max_answer_length,
            version_2_with_negative=data_args.version_2_with_negative,
            training=split == "train",
        ),
        report=lambda rows, _: report_targets(rows, tokenizer, data_args, training_args),
    )
    lay_out(features, data_args, training_args, length)
    one_shape = data_args.pad_to_max_length or data_args.length_buckets is not None  # of the answers
    collator = Seq2SeqCollator(
        tokenizer,
        length=length if data_args.pad_to_max_length else None,
        multiple_of=8 if training_args.fp16 else 1,
        label_length=data_args.max_answer_length if one_shape else None,
        label_padding=-100 if data_args.ignore_pad_token_for_loss else tokenizer.pad_token_id,
        start_token=generation.decoder_start_token_id,
    )
    longest_answer = max(data_args.max_answer_length, training_args.generation_max_length)
    check_batches(weightless, features, collator, answer_length=longest_answer)
    check_room(weightless, features, training_args)

    def make_trainer(args):
        model = load_seq2seq_model(config, model_args)
        set_generation_config(model, generation, args)
        return QuestionAnsweringSeq2SeqTrainer(
            model=model,
            args=args,
            **trainer_data(features, rows),
            processing_class=tokenizer,
            data_collator=collator,
            post_process_function=partial(to_answers, data_args, tokenizer),
            compute_metrics=partial(score_answers, data_args),
            write_answers=partial(write_stage, training_args.output_dir, data_args),
            make_settings=partial(make_settings, data_args, "written", length, generation=training_args),
            empty_answer=empty_answer(tokenizer) if data_args.version_2_with_negative else None,
            **extras,
        )

    if data_args.check:
        plan = make_plan(weightless, features, collator, tokenizer, training_args, checkpoint, longest_answer)
        return report_plan(plan, features, training_args, make_trainer, data_args.check_steps)

    return run(make_trainer(training_args), data_args, model_args, checkpoint, record, features, rows, counts)


def set_generation(data_args: Seq2SeqDataArguments, training_args) -> None:
    """Set length and beams of the written answers in the trainer's arguments; warn of a run that writes none."""
    training_args.generation_max_length = training_args.generation_max_length or data_args.val_max_answer_length
    training_args.generation_num_beams = data_args.num_beams or training_args.generation_num_beams
    if not training_args.predict_with_generate and (training_args.do_eval or training_args.do_predict):
        logger.warning(
            "Without --predict_with_generate no answers are written: there will be a loss (where answers are known), "
            "but no EM, no F1 and no files of predictions; add --predict_with_generate to get them"
        )


def to_answers(
    data_args: Seq2SeqDataArguments, tokenizer, examples, features, written: list, stage: str
) -> ScoredForm:
    """Return the text that was written for the best window of every example, in the metrics' form."""
    tokens, scores, *null_scores = written
    answers = choose_windows(
        examples,
        features,
        texts=tokenizer.batch_decode(tokens, skip_special_tokens=True),
        scores=scores,
        null_scores=null_scores[0] if data_args.version_2_with_negative else None,
        null_score_diff_threshold=data_args.null_score_diff_threshold,
        temperature=data_args.temperature,
    )
    return format_for_metric(answers, examples, features)


if __name__ == "__main__":
    run_or_exit(main)
