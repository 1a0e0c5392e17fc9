"""The tokenizer and the model that the flags name, and their problems, found before any slow step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from qa.arguments import DataArguments, ModelArguments, hub_arguments
from qa.attention import kernels_dropped
from qa.checkpoints import adapter_problems, checkpoint_problems, count_of, listed, lost_tensors, read_sizes
from qa.errors import UserError, in_one_line, reason_of, short
from qa.files import parse_json
from qa.hub import loading_problem
from qa.limits import LIMITS
from qa.lora import base_arguments, find_adapter, peft_is_missing, read_adapter
from qa.names import is_missing
from qa.out_of_memory import memory_problem
from qa.upstream.models import own_generation_ignored, trunk_mapping
from qa.weightless import BeyondTable, build_weightless, forward
from qa.windows import Template


logger = logging.getLogger(__name__)

JSON_FILES = [
    f"{name}.json" for name in "config tokenizer tokenizer_config special_tokens_map added_tokens vocab".split()
]


def load_config_and_tokenizer(model_args: ModelArguments):
    """Return the model's configuration and its fast tokenizer.

    A tokenizer without a padding token, or whose padding token has no embedding, pads with another token.

    Raises:
        UserError: neither a folder nor a hub that answers holds them, or the tokenizer is a slow one.
    """
    if not getattr(model_args, "use_fast_tokenizer", True):
        logger.warning("--use_fast_tokenizer False has no effect: windows are cut by the offsets of a fast tokenizer")
    base = arguments_of_base(model_args)
    with nullcontext() if model_args.trust_remote_code else kernels_dropped(base):
        with named_by_adapters(model_args, base):
            config = from_pretrained(AutoConfig, "config_name", base)
        own = base is model_args or has_tokenizer(model_args)
        tokenizer = from_pretrained(AutoTokenizer, "tokenizer_name", model_args if own else base, use_fast=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"--model_name_or_path {model_args.model_name_or_path}: its tokenizer {type(tokenizer).__name__} is a slow one; "
            "question answering needs the offsets of a fast tokenizer (backed by the tokenizers library)"
        )
    if (
        not isinstance(tokenizer.model_max_length, (int, float))
        or tokenizer.model_max_length < LIMITS["max_seq_length"].least
    ):
        raise UserError(
            f"{model_args.tokenizer_name or model_args.model_name_or_path}: the model_max_length of its tokenizer is "
            f"{short(tokenizer.model_max_length)}; set it to the tokens that an input may have"
        )
    embedded = getattr(config, "vocab_size", None) or len(tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= embedded:
        # Padding is masked, so any token with an embedding will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config, tokenizer


def check_model(
    auto_class: type, config, tokenizer, model_args: ModelArguments, remote: bool, checkpointing: bool = False
) -> torch.nn.Module:
    """Return the model without its weights, after checking that tokenizer, configuration and checkpoint go together.

    The tokenizer's token types are omitted, in place, where the model has fewer.

    Args:
        remote: ask the hub for names and sizes of tensors that its cache does not have.
        checkpointing: the layers have to support gradient checkpointing.

    Raises:
        UserError: with every problem found.
    """
    name = model_args.model_name_or_path
    with loading_problems(auto_class, "model_name_or_path", model_args):
        weightless = build_weightless(auto_class, config, model_args.trust_remote_code)
    omit_surplus_token_types(config, tokenizer)
    problems = vocabulary_problems(weightless, tokenizer)
    problems += checkpointing_problems(weightless) if checkpointing else []
    sizes = None if hasattr(config, "quantization_config") else read_sizes(base_arguments(model_args), remote)
    if sizes is not None:
        problems += [f"--model_name_or_path {name}: {problem}" for problem in checkpoint_problems(weightless, sizes)]
    elif remote:
        logger.warning(f"--model_name_or_path {name}: which tensors it has is not known without reading its weights")
    if problems:
        raise UserError(*problems)
    adapted = with_adapters(weightless, auto_class, model_args)
    problems = [] if read_adapter(model_args) is None else adapter_problems(adapted, model_args)
    if problems:
        raise UserError(*(f"--model_name_or_path {name}: {problem}" for problem in problems))
    return adapted


def with_adapters(weightless: torch.nn.Module, auto_class: type, model_args: ModelArguments) -> torch.nn.Module:
    """Return a model without weights that has the adapters of a run; the same one in a run without them."""
    if model_args.lora_r is None and read_adapter(model_args) is None:
        return weightless
    from qa.adapters import add_adapters

    change = partial(add_adapters, model_args=model_args)
    try:
        return build_weightless(auto_class, weightless.config, model_args.trust_remote_code, change=change)
    except ValueError as error:  # peft's own checks
        raise UserError(f"--model_name_or_path {model_args.model_name_or_path}: {reason_of(error)}") from error


def arguments_of_base(model_args: ModelArguments) -> ModelArguments:
    """Return the arguments that name the model itself, which is another one than `--model_name_or_path` if that names adapters.

    Raises:
        UserError: adapters cannot be loaded without peft, and have no new ones on top of them.
    """
    name = model_args.model_name_or_path
    if not Path(name).is_dir():
        with loading_problems(AutoConfig, "model_name_or_path", model_args):
            find_adapter(model_args)
    adapter = read_adapter(model_args)
    if adapter is not None and is_missing("peft"):
        raise UserError(peft_is_missing(name))
    if adapter is not None and model_args.lora_r is not None:
        raise UserError(
            f"--lora_r {model_args.lora_r}: {name} already holds adapters, of rank {adapter.get('r')}, which would be trained "
            "further; omit --lora_r"
        )
    return base_arguments(model_args)


@contextmanager
def named_by_adapters(model_args: ModelArguments, base: ModelArguments) -> Iterator[None]:
    """Let a UserError about the model of adapters name the adapters too, which are what the flag names."""
    try:
        yield
    except UserError as error:
        if base is model_args:
            raise
        flag = f"--model_name_or_path {model_args.model_name_or_path}"
        of_base = [problem.removeprefix("--model_name_or_path ") for problem in error.problems]
        raise UserError(*(f"{flag}: its adapters belong to {problem}" for problem in of_base)) from error


def has_tokenizer(model_args: ModelArguments) -> bool:
    """Return whether there is a tokenizer next to adapters, which others than these scripts may have saved alone."""
    return bool(get_tokenizer_config(model_args.model_name_or_path, **hub_arguments(model_args)))


def is_causal(config) -> bool:
    """Return whether each token of the model sees only those before it.

    That is a decoder-only model: one whose type has a head for causal language modelling and none for masked tokens.
    Encoders that have both are causal where `is_decoder` makes them so, XLNet where its attention is not `bi`.
    """
    if config.is_encoder_decoder:
        return False
    kind = config.model_type
    decoder_only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.is_decoder or (decoder_only and getattr(config, "attn_type", None) != "bi")


def vocabulary_problems(model: torch.nn.Module, tokenizer) -> list[str]:
    """Return the problem with a tokenizer that turns text into ids past the end of the model's embeddings."""
    embedded, added = model.get_input_embeddings().weight.shape[0], tokenizer.added_tokens_decoder
    beyond = range(embedded, len(tokenizer))
    if all(number in added and added[number].special for number in beyond):  # no text becomes a special token
        return []
    return [
        f"--tokenizer_name: the tokenizer has {len(tokenizer)} tokens, but the model embeds only {embedded}; "
        "they do not belong together"
    ]


def checkpointing_problems(model: torch.nn.Module) -> list[str]:
    """Return the problem with a model whose layers transformers cannot checkpoint."""
    has_layers = any(hasattr(part, "gradient_checkpointing") for part in model.modules())
    if model.supports_gradient_checkpointing and has_layers:
        return []
    return [
        f"--gradient_checkpointing: {type(model).__name__} does not support it; omit it, and save memory with a lower "
        "--per_device_train_batch_size"
    ]


def omit_surplus_token_types(config, tokenizer) -> None:
    """Let a tokenizer omit token types where it has more than the model, as BERT's has for RoBERTa."""
    types = getattr(config, "type_vocab_size", None)
    if types is None or "token_type_ids" not in tokenizer.model_input_names:
        return
    if max(tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]) >= types:
        logger.warning(f"The tokenizer has token types that the model, with {types}, does not know; they are omitted")
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]


def load_extractive_model(config, model_args: ModelArguments, trained: bool = False):
    """Return the model that marks answers, with the weights of its checkpoint.

    Args:
        trained: the checkpoint has to have the head too.

    Raises:
        UserError: it cannot be loaded, or the checkpoint lacks tensors that are no part of the head.
    """
    if is_causal(config):
        config.use_cache = False  # nothing reads the states, and layers that are checkpointed do not return them
    return load_model(AutoModelForQuestionAnswering, config, model_args, trained)


def load_seq2seq_model(config, model_args: ModelArguments, trained: bool = False):
    """Return the model that writes answers, as `load_extractive_model` does."""
    return load_model(AutoModelForSeq2SeqLM, config, model_args, trained)


def load_model(auto_class: type, config, model_args: ModelArguments, trained: bool):
    base = base_arguments(model_args)
    loaded, new = load_base(auto_class, config, base)
    if base is model_args and new and trained:
        raise UserError(
            f"--model_name_or_path {model_args.model_name_or_path}: it has no head for answers, {count_of(new)} ({listed(new)}) "
            "would be random numbers; train it first"
        )
    if base is model_args and model_args.lora_r is None:
        report_new(new)
        return loaded
    from qa.adapters import add_adapters, load_adapters

    if base is model_args:
        report_new(new)
        return add_adapters(loaded, model_args)
    with loading_problems(auto_class, "model_name_or_path", model_args):
        adapted = load_adapters(loaded, model_args)
    if lost := without_weights(new, adapted.peft_config["default"].modules_to_save):
        raise UserError(
            f"--model_name_or_path {model_args.model_name_or_path}: neither its adapters nor their model have an answer head "
            f"({listed(lost)}); name adapters of a model that answers questions"
        )
    return adapted


def load_base(auto_class: type, config, model_args: ModelArguments) -> tuple[torch.nn.Module, list[str]]:
    """Return a model with the weights of its checkpoint, and the names of the tensors of the head that the checkpoint lacks."""
    name = model_args.model_name_or_path
    with loading_problems(auto_class, "model_name_or_path", model_args):
        mapping = trunk_mapping(build_weightless(auto_class, config, model_args.trust_remote_code))
    settings = {"config": config, "key_mapping": mapping, "output_loading_info": True}
    with hidden_lines("transformers.modeling_utils", "newly initialized"), own_generation_ignored(model_args):
        loaded, found = from_pretrained(auto_class, "model_name_or_path", model_args, **settings)
    if problems := lost_tensors(loaded, found["missing_keys"]):
        raise UserError(*(f"--model_name_or_path {name}: {problem}" for problem in problems))
    return loaded, sorted(found["missing_keys"])


def report_new(tensors: list[str]) -> None:
    if tensors:
        logger.warning(
            f"The answer head is new: {count_of(tensors)} ({listed(tensors)}); train it before you rely on its answers"
        )


def without_weights(new: list[str], saved: list[str] | None) -> list[str]:
    """Return the tensors that neither a checkpoint nor the modules that are saved with adapters have."""
    return [name for name in new if name.split(".")[0] not in (saved or ())]


@contextmanager
def hidden_lines(name: str, part: str) -> Iterator[None]:
    """Keep lines that contain a text out of a logger."""

    def hides(record: logging.LogRecord) -> bool:
        return part not in record.getMessage()

    logging.getLogger(name).addFilter(hides)
    try:
        yield
    finally:
        logging.getLogger(name).removeFilter(hides)


def from_pretrained(auto_class: type, flag: str, model_args: ModelArguments, **settings):
    """Return `auto_class.from_pretrained` of the value of a flag, else of --model_name_or_path.

    Raises:
        UserError: it fails; the reason in one line.
    """
    flag = flag if getattr(model_args, flag) else "model_name_or_path"
    with loading_problems(auto_class, flag, model_args):
        return auto_class.from_pretrained(getattr(model_args, flag), **hub_arguments(model_args), **settings)


@contextmanager
def loading_problems(auto_class: type, flag: str, model_args: ModelArguments) -> Iterator[None]:
    """Turn the libraries' errors about the value of a flag into a UserError of one line."""
    name = getattr(model_args, flag)
    try:
        if auto_class is AutoConfig and Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise FileNotFoundError("it has no config.json")  # transformers would guess the type by the folder's name
        yield
    except Exception as error:  # the files can hold anything
        if memory_problem(error) is not None:
            raise
        reason = why_unreadable(Path(name), auto_class) or reason_of(error)
        failure = f"cannot be loaded with {auto_class.__name__}: {reason}"
        raise UserError(loading_problem(error, flag, name, model_args, failure)) from error


def why_unreadable(folder: Path, auto_class: type) -> str | None:
    """Return what is wrong with the files of a folder, None where nothing is, or it is none: libraries rarely report it."""
    for file in filter(Path.is_file, map(folder.joinpath, JSON_FILES)):
        try:
            content = parse_json(file.read_bytes())
            if not isinstance(content, dict):
                return f"its {file.name} is not a JSON object"
            if file.name == "config.json" and "model_type" not in content:
                return "its config.json has no model_type"
        except (OSError, ValueError) as error:
            return f"its {file.name} is not JSON: {in_one_line(error)}"
    vocabularies = [file for kind in ("tokenizer.*", "vocab*", "*.model", "*.spm") for file in folder.glob(kind)]
    if auto_class is AutoTokenizer and folder.is_dir() and not vocabularies:
        return "it has no tokenizer (tokenizer.json); name another with --tokenizer_name"
    return None


def sequence_limit(data_args: DataArguments, weightless: torch.nn.Module, tokenizer, template: Template) -> int:
    """Return `--max_seq_length`, or the tokens that tokenizer and model allow where that is less (reported in the log)."""
    limit = min(tokenizer.model_max_length, data_args.max_seq_length)
    limit = longest_input(weightless, limit, tokenizer, template)
    if data_args.max_seq_length > limit:
        logger.warning(
            f"--max_seq_length {data_args.max_seq_length} is more than the model's {limit} tokens; using {limit}"
        )
    if data_args.doc_stride + template.special_tokens >= limit:
        raise UserError(
            f"--doc_stride {data_args.doc_stride} leaves no room in a window of {limit} tokens, special tokens included; "
            "windows overlap by doc_stride tokens, so make it smaller"
        )
    return limit


def longest_input(model: torch.nn.Module, length: int, tokenizer, template: Template) -> int:
    """Return for how many of `length` tokens the model has positions.

    Wherever positions begin in its table, the rows that the table lacks are as many as the tokens beyond the limit.
    Where shapes differ before the table is read, as with BERT's buffer of positions, the configuration's length is
    tried.
    """
    word = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids[:1]
    context = word * (length - template.special_tokens - 1)
    ids = [*template.before, *word, *template.between, *context, *template.after]
    try:
        forward(model, {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)})
    except BeyondTable as error:
        return length - error.excess
    except Exception:
        allowed = getattr(model.config, "max_position_embeddings", None) or length
        return longest_input(model, allowed, tokenizer, template) if allowed < length else length
    return length
