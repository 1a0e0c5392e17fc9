"""Advice on the model to start from: few questions do not train a new answer head.

With a few hundred questions standard models, whose head is new, perform poorly (Ram et al. 2021, "Few-Shot Question
Answering by Pretraining Span Selection", https://aclanthology.org/2021.acl-long.239). A model that is fine-tuned on another
collection of questions answers from the start.
"""

import logging

from transformers import AutoModelForQuestionAnswering

from qa.arguments import ModelArguments
from qa.checkpoints import missing_and_unexpected, model_names, read_sizes
from qa.lora import read_adapter
from qa.mlqa import detect_language
from qa.weightless import build_weightless


logger = logging.getLogger(__name__)

FEW = 1000  # questions
# By the language of the contexts; of README.md's table of models.
FINE_TUNED = {"en": "deepset/roberta-base-squad2", "de": "deepset/gelectra-base-germanquad"}
MANY_LANGUAGES = "deepset/xlm-roberta-base-squad2"


def advise_start(config, model_args: ModelArguments, rows: list[dict]) -> None:
    """Report a fine-tuned model to start from where few questions are to train an answer head that is new.

    Where the hub has to be asked for the names of a checkpoint's tensors, it is; without an answer there is no advice.

    Args:
        config: of a model that marks answers.
        rows: to train on.
    """
    if len(rows) >= FEW or not has_new_head(config, model_args):
        return
    language = detect_language(dict.fromkeys(row["context"] for row in rows))
    logger.warning(
        f"{len(rows)} questions are few for training an answer head, which {model_args.model_name_or_path} does not have yet; "
        f"start from a fine-tuned model, such as --model_name_or_path {FINE_TUNED.get(language, MANY_LANGUAGES)}"
    )


def has_new_head(config, model_args: ModelArguments) -> bool:
    """Return whether a checkpoint is known to lack tensors of its model; adapters of a run bring theirs, quantized ones differ."""
    if hasattr(config, "quantization_config") or read_adapter(model_args) is not None:
        return False
    model = build_weightless(AutoModelForQuestionAnswering, config, model_args.trust_remote_code)
    sizes = read_sizes(model_args, remote=True)
    return sizes is not None and bool(missing_and_unexpected(model, model_names(model, list(sizes)))[0])
