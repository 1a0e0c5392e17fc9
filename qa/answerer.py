"""Answer questions with a trained model: the same answers as in an evaluation, without a trainer.

    from qa.answerer import Answerer

    model = Answerer("out")
    for answer in model.answer(["Who signed it?", "When does it end?"], contract):
        print(answer.text, answer.probability, answer.start, answer.end)

`python -m qa.ask` does the same in a terminal.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import qa.upstream  # noqa: F401  before anything that imports PyTorch


# isort: split
import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import cached_file

from qa.answer_table import make_table, window_counts
from qa.arguments import DataArguments, ModelArguments, hub_place
from qa.data import text_problem
from qa.errors import UserError, reason_of
from qa.folders import short_path
from qa.limits import number_problems
from qa.models import load_config_and_tokenizer
from qa.names import why_no_source
from qa.padding import PaddingCollator
from qa.preflight import why_no_gaudi
from qa.readers import READERS, Reader
from qa.recipe_cache import set_recipe_cache
from qa.settings import SETTINGS_FILE, Settings, read_settings
from qa.upstream.gaudi import patch_attention, patch_bart


logger = logging.getLogger(__name__)

SETTINGS_FLAGS = {entry.name for entry in fields(Settings)} - {"kind", "columns", "tuned_on", "language"}
WRITING_FLAGS = {  # and their names in `qa.ask`
    "language_code": "language_code",
    "generation_max_length": "generation_max_length",
    "generation_num_beams": "num_beams",
}
LOADING_FLAGS = {"config_name", "tokenizer_name", "cache_dir", "model_revision", "token", "trust_remote_code"}


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        text: empty for "no answer".
        probability: that of the answer among the candidates; of a model that writes, that of writing it.
        start, end: the characters of the context, from 0, where the answer is; None where the context does not have it.
    """

    text: str
    probability: float | None
    start: int | None
    end: int | None


class Answerer:
    """A trained model, of either kind, that answers questions.

    Args:
        model: the folder of a model, or its name on the hub.
        device: as PyTorch names it: `cpu`, `cuda:1`, `mps`, or `hpu` for a Gaudi. By default a GPU, else the CPU.
        batch_size: windows that the model takes at once.
        flags: settings in place of those that the training saved with the model, by their names, such as
            `max_answer_length=10`; and those that loading needs, such as `token` or `trust_remote_code`.

    Attributes:
        settings: with which it answers, a `qa.settings.Settings`. Without `qa_settings.json` they are the defaults of the
            scripts' flags, as far as the model takes them.

    Raises:
        UserError: the model or the device cannot be used; one line for each problem.
    """

    def __init__(self, model: str | Path, device: str | None = None, batch_size: int = 8, **flags):
        if unknown := flags.keys() - SETTINGS_FLAGS - LOADING_FLAGS:
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        if problem := why_no_source("model_name_or_path", str(model)):
            raise UserError(f"{short_path(str(model))}{problem}")
        self.batch_size, device = batch_size, find_device(device)
        loading = {name: flags.pop(name) for name in LOADING_FLAGS & flags.keys()}
        try:
            self.reader = make_reader(ModelArguments(str(model), **loading), flags, device)
        except UserError as error:
            raise UserError(*(problem.removeprefix("--model_name_or_path ") for problem in error.problems)) from error
        self.settings = self.reader.settings

    def answer(self, questions: str | Sequence[str], contexts: str | Sequence[str]) -> list[Answer]:
        """Return the answers to the questions.

        Args:
            questions: one or several.
            contexts: one for all questions, or one for each.

        Raises:
            UserError: a question or a context is empty.
            ValueError: the numbers of questions and contexts differ.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        contexts = [contexts] * len(questions) if isinstance(contexts, str) else list(contexts)
        if len(contexts) != len(questions):
            raise ValueError(f"got {len(questions)} questions and {len(contexts)} contexts")
        return self.answer_rows(make_rows(questions, contexts))

    def answer_rows(self, rows: list[dict], bar: bool = False) -> list[Answer]:
        """Return the answers to rows of `qa.data`, whose ids differ.

        Args:
            bar: draw a bar of the batches.
        """
        if not rows:
            return []
        rows = [row | {"answers": None} for row in rows]  # where all are known, features would have labels
        features = self.reader.features(rows)
        answers = self.reader.answers(rows, features, self.run_model(features, bar))
        windows = window_counts(features, [row["id"] for row in rows])
        columns, nothing = make_table(answers, rows, windows, golds=None, language="off").columns, [None] * len(rows)
        found = [columns.get(name, nothing) for name in ("predicted", "probability", "start", "end")]
        return [Answer(*values) for values in zip(*found)]

    def run_model(self, features, bar: bool) -> list[np.ndarray]:
        """Return what the reader keeps of the model's outputs, (features, ...) each.

        The longest features come first, and each batch is padded to its longest. On a Gaudi all have one shape.
        """
        order, device = np.argsort(-features.lengths(), kind="stable"), self.reader.device
        one_shape, kept = device.type == "hpu", []
        collate = PaddingCollator(self.reader.tokenizer, self.settings.max_seq_length if one_shape else None)
        with torch.no_grad():
            for begin in tqdm(range(0, len(order), self.batch_size), disable=not bar, unit="batch"):
                chosen = order[begin : begin + self.batch_size]
                filled = np.resize(chosen, self.batch_size) if one_shape else chosen
                batch = collate([features[index] for index in filled])
                tables = self.reader.step({name: tensor.to(device) for name, tensor in batch.items()})
                kept.append([table[: len(chosen)] for table in tables])
        place = np.argsort(order)
        return [np.concatenate(pieces)[place] for pieces in zip(*kept)]


def make_rows(questions: list[str], contexts: list[str]) -> list[dict]:
    """Return questions and their contexts as rows of `qa.data`.

    Raises:
        UserError: some are empty, or no texts.
    """
    rows = [
        {"id": str(number), "title": "", "context": context, "question": question, "answers": None}
        for number, (question, context) in enumerate(zip(questions, contexts))
    ]
    problems = [(number, text_problem(row)) for number, row in enumerate(rows, start=1)]
    if problems := [f"question {number}: {problem}; write one" for number, problem in problems if problem is not None]:
        raise UserError(*problems[:5])
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Model, settings and device


def make_reader(model_args: ModelArguments, flags: dict, device: torch.device) -> Reader:
    """Return the reader of a model with its saved settings, those in `flags` in their place."""
    config, tokenizer = load_config_and_tokenizer(model_args)
    saved = saved_settings(model_args)
    settings = replace(saved or default_settings(config), **flags)
    unread = [name for flag, name in WRITING_FLAGS.items() if settings.kind == "span" and flag in flags]
    problems = [
        f"--{name} is for models that write their answers, and this one marks them; omit it" for name in unread
    ]
    if problems := number_problems(settings) + problems:
        raise UserError(*problems)
    stride_is_known = saved is not None or "doc_stride" in flags
    return READERS[settings.kind](model_args, config, tokenizer, settings, stride_is_known, device)


def saved_settings(model_args: ModelArguments) -> Settings | None:
    """Return the settings in the folder of a model, or in its repository on the hub; None where there are none."""
    name = model_args.model_name_or_path
    if Path(name).is_dir():
        return read_settings(Path(name))
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    file = cached_file(name, SETTINGS_FILE, **hub_place(model_args), **quiet)
    return None if file is None else read_settings(Path(file).parent)


def default_settings(config) -> Settings:
    """Return the settings of a model of another tool: the defaults of the scripts' flags.

    It writes its answers if it is an encoder-decoder without a head that marks them.
    """
    heads = "".join(config.architectures or ())
    kind = "written" if config.is_encoder_decoder and "ForQuestionAnswering" not in heads else "span"
    flags = DataArguments()
    names = "max_seq_length doc_stride max_answer_length n_best_size version_2_with_negative".split()
    return Settings(kind, **{name: getattr(flags, name) for name in names})


def find_device(name: str | None) -> torch.device:
    """Return the device that a name means; without one the GPU, else the CPU.

    Raises:
        UserError: it cannot be used here.
    """
    if name is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None or found.type == "hpu" else found
    if name.split(":")[0] == "hpu":
        start_gaudi()
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # of many kinds, by device
        raise UserError(f"--device {name} cannot be used: {reason_of(error)}; name another, or omit it") from error


def start_gaudi() -> None:
    """Load Habana's plugin, in lazy mode unless PT_HPU_LAZY_MODE says otherwise, and optimum-habana's models.

    Compiled graphs are kept as in the scripts, see `qa.recipe_cache`.

    Raises:
        UserError: this machine has no Gaudi that can be used.
    """
    os.environ.setdefault("PT_HPU_LAZY_MODE", "1")
    logger.log(*set_recipe_cache())
    if reason := why_no_gaudi():
        raise UserError(f"--device hpu cannot be used: {reason}; name another, or omit it")
    from optimum.habana.transformers.modeling_utils import adapt_transformers_to_gaudi

    adapt_transformers_to_gaudi()
    patch_bart()
    patch_attention()
