"""How an encoder-decoder starts, ends and constrains the answers that it writes."""

import logging

import torch
import transformers
from transformers import GenerationConfig

from qa.arguments import ModelArguments, hub_arguments
from qa.errors import UserError
from qa.lora import base_arguments


logger = logging.getLogger(__name__)

# Checkpoints for summaries or dialogues have other values, which rule out short answers copied from the text.
UNCONSTRAINED = {"min_length": 0, "min_new_tokens": None, "encoder_no_repeat_ngram_size": 0}


def set_language(tokenizer, code: str | None) -> None:
    """Set one language for questions, contexts and answers, in tokenizers that mark it (mBART, NLLB).

    Without `code` it is the tokenizer's own: its `tgt_lang` for answers, where that is not set its `src_lang`.

    Raises:
        UserError: the tokenizer does not know the code, or marks no languages.
    """
    marks_languages = hasattr(tokenizer, "src_lang")
    if code is not None and not (marks_languages and code in tokenizer.all_special_tokens):
        known = [token for token in tokenizer.all_special_tokens if "_" in token] if marks_languages else []
        raise UserError(
            f"--language_code {code}: the tokenizer {type(tokenizer).__name__} "
            + (f"knows {', '.join(sorted(known))}; name one of them" if known else "marks no languages; omit it")
        )
    if code is not None:
        tokenizer.src_lang = code
    if marks_languages:
        tokenizer.tgt_lang = code or tokenizer.tgt_lang or tokenizer.src_lang


def special_tokens_around(encoding) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after the words of an encoded text that has at least one."""
    words = [index for index, sequence in enumerate(encoding.sequence_ids()) if sequence is not None]
    return encoding["input_ids"][: words[0]], encoding["input_ids"][words[-1] + 1 :]


def answer_marks(tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens before and after the words of a label; the first one after them ends the answer.

    Where the tokenizer adds none after a text, the end token is added: a model that never sees one never stops.

    Raises:
        UserError: the tokenizer has no end token.
    """
    before, after = special_tokens_around(tokenizer(text_target="a"))
    if not after and tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no token that ends a text: set its eos_token, or name another "
            "with --tokenizer_name"
        )
    return before, after or [tokenizer.eos_token_id]


def empty_answer(tokenizer) -> list[int]:
    """Return the tokens of "no answer" as a label, up to the one that ends it."""
    before, after = answer_marks(tokenizer)
    return [*before, after[0]]


def read_generation_config(config, tokenizer, model_args: ModelArguments, training_args) -> GenerationConfig:
    """Return the configuration of generation: that of --generation_config, else the checkpoint's.

    Start, end and language of an answer are those of the labels (`follow_labels`). A checkpoint's settings that rule
    out short answers are reset, and reported.

    Raises:
        UserError: the model is no encoder-decoder, no start token is known, or --generation_config is neither a file
            nor a hub name of a valid configuration.
    """
    if not config.is_encoder_decoder:
        raise cannot_write(config, model_args, "is not an encoder-decoder")
    if training_args.generation_config is not None:
        generation = named_generation_config(training_args.generation_config)
    else:
        generation = own_generation_config(config, model_args)
        allow_short_answers(generation)
    follow_labels(generation, config.decoder_start_token_id, tokenizer)
    if generation.decoder_start_token_id is None:
        raise cannot_write(config, model_args, "has no decoder_start_token_id")
    return generation


def follow_labels(generation: GenerationConfig, model_start: int | None, tokenizer) -> None:
    """Set start, end and language of generated answers to those of the labels, which the model is trained to write.

    - Start token: the language where labels have one after their end (mBART-25), else the first that is set of
      `decoder_start_token_id`, `model_start` (that of the model's configuration) and `bos_token_id`.
    - End token: that of the labels, as well as those that are set.
    - First token: the language where labels begin with one (mBART-50, NLLB).
    """
    before, after = answer_marks(tokenizer)
    starts = (generation.decoder_start_token_id, model_start, generation.bos_token_id)
    first_set = next((token for token in starts if token is not None), None)
    generation.decoder_start_token_id = after[-1] if len(after) > 1 else first_set
    ends = end_tokens(generation)
    if after[0] not in ends:
        generation.eos_token_id = [*ends, after[0]] if ends else after[0]
    if before and hasattr(tokenizer, "src_lang"):
        generation.forced_bos_token_id = before[0]


def cannot_write(config, model_args: ModelArguments, reason: str) -> UserError:
    return UserError(
        f"--model_name_or_path {model_args.model_name_or_path}: a {config.model_type} model that {reason} cannot write "
        "answers; models that mark them in the text are for run_qa.py"
    )


def named_generation_config(name: str) -> GenerationConfig:
    """Return the configuration that --generation_config names, checked as the trainer checks it."""
    try:
        return transformers.Seq2SeqTrainer.load_generation_config(name)
    except (OSError, ValueError) as error:
        raise UserError(f"--generation_config {name}: {' '.join(str(error).split())[:400]}") from error


def own_generation_config(config, model_args: ModelArguments) -> GenerationConfig:
    """Return the configuration in the checkpoint's `generation_config.json`, else that in its `config.json`."""
    model_args = base_arguments(model_args)
    hub = {name: value for name, value in hub_arguments(model_args).items() if name != "trust_remote_code"}
    try:
        return GenerationConfig.from_pretrained(model_args.model_name_or_path, **hub)
    except OSError:
        return GenerationConfig.from_model_config(config)


def allow_short_answers(generation: GenerationConfig) -> None:
    """Reset the settings of `UNCONSTRAINED`, and report those that were set."""
    reset = {name: getattr(generation, name) for name in UNCONSTRAINED if getattr(generation, name)}
    for name in reset:
        setattr(generation, name, UNCONSTRAINED[name])
    if reset:
        logger.warning(
            f"The checkpoint's {', '.join(f'{name} {value}' for name, value in reset.items())} would rule out short answers "
            "and is reset; name a file of such settings with --generation_config to apply them"
        )


def end_tokens(generation: GenerationConfig) -> list[int]:
    """Return the ids that end an answer; a configuration has one, several or none."""
    ends = generation.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]


def set_generation_config(model, generation: GenerationConfig, training_args) -> None:
    """Give the model its configuration of generation, and keep the trainer from loading --generation_config again."""
    own_class = type(model.generation_config)  # optimum-habana has its own
    model.generation_config = own_class.from_dict(generation.to_dict())
    model.generation_config._from_model_config = False  # if True, transformers 4.55 would build it again from that
    model.config.decoder_start_token_id = generation.decoder_start_token_id
    training_args.generation_config = None


def shift_right(labels: torch.Tensor, start: int, padding: int) -> torch.Tensor:
    """Return the decoder's inputs for `labels`, both (batch, length): the start token, then all labels but the last.

    Labels that do not count in the loss, -100, become `padding`. The start token is the one that generation begins
    with. The models' own functions, where they exist, take others: mBART's the last label, T5Gemma's that of its
    decoder.
    """
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == -100, padding)
