"""Peak memory of features and of an evaluation, by their number; each in a process of its own.

Questions are generated, five to a context, with the lengths of SQuAD's. The evaluation is the trainer's, of a model
that reads its logits off a table, so that nothing but what the evaluation keeps takes memory.
"""

import os
import resource
import sys
import tempfile
from functools import partial

from benchmarks.questions import DOC_STRIDE, MAX_SEQ_LENGTH, generated_questions, make_tokenizer, run_process


# isort: split
import utils_qa
from qa.device import training_arguments  # before what imports PyTorch
from trainer_qa import QuestionAnsweringTrainer


# isort: split
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.trainer_utils import EvalPrediction

import qa.padding


MEGABYTE = 1 << 20


def bench(full: bool) -> None:
    print(
        "\n| questions | features | features, MB | evaluation and answers, MB | all their logits, MB |\n|---|---|---|---|---|"
    )
    for number in (10_000, 50_000, 200_000) if full else (2_000, 10_000):
        command = [sys.executable, "-m", "benchmarks.memory", str(number)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        print(run_process(command, env=environment).splitlines()[-1], flush=True)


def peak() -> float:
    """Return the peak memory of this process, in megabytes. (That of `getrusage` includes the parent process.)"""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def current() -> float:
    """Return the memory that this process has now, in megabytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MEGABYTE


def measure(number: int) -> None:
    """Print a row of the table: the rise of the peak over the memory before the features, and before the evaluation."""
    rows = generated_questions(number)
    tokenizer = make_tokenizer(rows[:5000])
    utils_qa.prepare_features(rows[:100], tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE)
    start = current()
    features = utils_qa.prepare_features(rows, tokenizer, MAX_SEQ_LENGTH, DOC_STRIDE)
    held = peak() - start
    with tempfile.TemporaryDirectory() as folder:
        trainer = QuestionAnsweringTrainer(
            model=TableForQuestionAnswering(PretrainedConfig(vocab_size=len(tokenizer))),
            args=training_arguments(False)(
                output_dir=folder,
                per_device_eval_batch_size=64,
                report_to="none",
                disable_tqdm=True,
                log_level="error",
            ),
            eval_dataset=features,
            eval_examples=rows,
            processing_class=tokenizer,
            data_collator=qa.padding.PaddingCollator(tokenizer, MAX_SEQ_LENGTH),
            post_process_function=partial(write_answers, folder),
        )
        start = current()
        trainer.evaluate()
    logits = 2 * 4 * MAX_SEQ_LENGTH * len(features) / MEGABYTE
    print(f"| {number:,} | {len(features):,} | {held:.0f} | {peak() - start:.0f} | {logits:.0f} |")


def write_answers(folder: str, examples, features, candidates, stage: str):
    texts = utils_qa.postprocess_qa_predictions(examples, features, candidates, output_dir=folder, prefix=stage)
    return EvalPrediction(predictions=texts, label_ids=None)


class TableForQuestionAnswering(PreTrainedModel):
    """A model whose logits are each token's row of a table."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, 2)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, start_positions=None, end_positions=None):
        start_logits, end_logits = self.table(input_ids).unbind(-1)
        loss = start_logits.mean() if start_positions is not None else None
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start_logits, end_logits=end_logits)


if __name__ == "__main__":
    measure(int(sys.argv[1]))
