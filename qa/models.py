"""The tokenizer and the model that the flags name, and what can be known wrong about them before anything slow."""

import logging
import math

from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from qa.arguments import DataArguments, ModelArguments
from qa.errors import UserError


logger = logging.getLogger(__name__)

# Models whose position table starts behind the padding index: a table of 514 serves 512 tokens.
POSITIONS_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text"),
    *("longformer", "mpnet", "luke", "mluke", "ibert", "esm"),
}


def load_config_and_tokenizer(model: ModelArguments):
    """The model's configuration and its fast tokenizer; a tokenizer without a padding token pads with an existing one.

    Raises:
        UserError: neither a folder nor a hub that answers holds them, the tokenizer is a slow one, or it knows ids
            that the model has no embedding for.
    """
    if not getattr(model, "use_fast_tokenizer", True):
        logger.warning("--use_fast_tokenizer False has no effect: windows are cut by the offsets of a fast tokenizer")
    hub = hub_arguments(model)
    config = from_pretrained(AutoConfig, model.config_name or model.model_name_or_path, hub)
    tokenizer = from_pretrained(
        AutoTokenizer, model.tokenizer_name or model.model_name_or_path, hub | {"use_fast": True}
    )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"--model_name_or_path {model.model_name_or_path}: its tokenizer {type(tokenizer).__name__} is a slow one; "
            "question answering needs the offsets of a fast tokenizer (backed by the tokenizers library)"
        )
    if tokenizer.pad_token is None:
        # Padding is masked, so any token serves; a new one would lie past the end of the embedding matrix.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    embeddings = getattr(config, "vocab_size", None)
    if embeddings is not None and len(tokenizer) > embeddings:
        raise UserError(
            f"--tokenizer_name: the tokenizer has {len(tokenizer)} tokens, but the model embeds only {embeddings}; "
            "they do not belong together"
        )
    return config, tokenizer


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


def load_marker(config, model: ModelArguments):
    """The model that marks answers, from safetensors where the checkpoint has them (else from weights-only pickle)."""
    hub = hub_arguments(model) | {"config": config}
    return from_pretrained(AutoModelForQuestionAnswering, model.model_name_or_path, hub)


def load_writer(config, model: ModelArguments):
    """The model that writes answers, as `load_marker` loads."""
    return from_pretrained(AutoModelForSeq2SeqLM, model.model_name_or_path, hub_arguments(model) | {"config": config})


def hub_arguments(model: ModelArguments) -> dict:
    return {
        "cache_dir": model.cache_dir,
        "revision": model.model_revision,
        "token": model.token,
        "trust_remote_code": model.trust_remote_code,
    }


def from_pretrained(auto_class: type, name: str, arguments: dict):
    """`auto_class.from_pretrained`, with its failures told in one line."""
    try:
        return auto_class.from_pretrained(name, **arguments)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{name}: cannot be loaded with {auto_class.__name__}: {reason}") from error


def sequence_limit(data: DataArguments, config, tokenizer, special_tokens: int) -> int:
    """`--max_seq_length`, or what the model allows when that is less (told in the log).

    `special_tokens` is how many stand around question and context in every window.
    """
    limit = min(tokenizer.model_max_length, position_limit(config))
    if data.max_seq_length > limit:
        logger.warning(
            f"--max_seq_length {data.max_seq_length} is more than the model's {limit} tokens; using {limit}"
        )
    length = min(data.max_seq_length, limit)
    if data.doc_stride + special_tokens >= length:
        raise UserError(
            f"--doc_stride {data.doc_stride} leaves no room in a window of {length} tokens, special tokens included; "
            "windows overlap by doc_stride tokens, so make it smaller"
        )
    return length


def position_limit(config) -> float:
    """How many tokens the model's table of positions serves; infinite where positions are relative or rotary."""
    table = getattr(config, "max_position_embeddings", None)
    if (
        table is None
        or table < 1
        or hasattr(config, "rope_theta")
        or not getattr(config, "position_biased_input", True)
    ):
        return math.inf
    return table - (config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0)
