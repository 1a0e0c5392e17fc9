"""Models that take packed rows: each feature of a row sees only itself, and has logits and a loss of its own.

Which mask keeps the features apart differs from model to model, and some models take none. A small random model of the same
kind shows it before a run: the logits of a packed feature must be those of the feature alone, in short rows and in full ones.
A full row shows a sliding window, which the mask would replace, and positions that are scaled by the longest feature.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.modeling_utils import set_zero3_state

from qa.errors import UserError
from qa.lora import own_model
from qa.packing import Packing, PackingCollator
from qa.weightless import plain_attention


NEAR = 1e-3  # of the largest logit; rounding makes a difference of 1e-6
SHORT = ((9, 7, 5), Packing(batch=3, rows=2, width=20))  # lengths of features, and their rows
REMAINDER = 4  # tokens of a full row that its second feature has; another row has one feature
VOCABULARY = 1000  # of the small model, at most
NO_LABEL = -100  # a position that counts in no loss


@dataclass(frozen=True)
class PackedForm:
    """How a kind of model takes packed rows.

    Args:
        mask: `(segments, dtype)` -> the attention mask; segments are (rows, width), as of `PackingCollator`.
        first_position: of a text's first token, as the model counts.
    """

    mask: Callable
    first_position: int


def block_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, width, width) 1 where a token sees another one: of its feature, or padding of padding.

    A token that sees nothing would be NaN in some kernels.
    """
    return (segments[:, :, None] == segments[:, None, :]).long()


def causal_block_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, 1, width, width) 0 where a token sees one of its feature up to itself, else the lowest number."""
    seen = causal_block_flags(segments, dtype).bool()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def causal_block_flags(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, 1, width, width) 1 where a token sees one of its feature up to itself, else 0, for decoders on a Gaudi."""
    return block_mask(segments, dtype).tril()[:, None]


def pack_model(model: torch.nn.Module, form: PackedForm) -> torch.nn.Module:
    """Let a model take the batches of `PackingCollator`, and return it."""
    model.forward = packed_forward(model, form)
    return model


def packed_forward(model: torch.nn.Module, form: PackedForm) -> Callable:
    """Return a forward pass that takes the batches of `PackingCollator`, and returns the loss and logits of features.

    The logits are (batch, width), as if each feature was padded to the width; after its tokens they are the lowest number.
    The loss is the mean over the features with a label. That of a feature counts its own tokens alone, as without padding.
    """
    own = model.forward
    taken = inspect.signature(own_model(model).forward).parameters

    def forward(
        places: torch.Tensor,
        segments: torch.Tensor,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        inputs = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        inputs = {name: tensor for name, tensor in inputs.items() if name in taken and tensor is not None}
        output = own(input_ids=input_ids, attention_mask=form.mask(segments, model.dtype), **inputs)
        starts, ends = (unpack(logits, places) for logits in (output.start_logits, output.end_logits))
        loss = None
        if start_positions is not None:
            loss = (loss_of(starts, start_positions) + loss_of(ends, end_positions)) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=starts, end_logits=ends)

    return forward


def unpack(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the logits of features, (batch, width), from those of their rows."""
    taken = logits.float().flatten()[places.clamp(min=0)]
    return taken.masked_fill(places < 0, torch.finfo(taken.dtype).min)


def loss_of(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy over the features whose position is one of their tokens."""
    return cross_entropy(logits, positions.where(positions < logits.shape[1], NO_LABEL), ignore_index=NO_LABEL)


# ---------------------------------------------------------------------------------------------------------------------
# Which form a model takes


def find_packed_form(auto_class: type, config, width: int, trust_remote_code: bool = False) -> PackedForm:
    """Return how models of this configuration take packed rows.

    Also under DeepSpeed ZeRO-3, where the small model is not partitioned.

    Args:
        width: tokens of a row.

    Raises:
        UserError: they do not, such as those whose attention takes no mask of pairs of tokens.
    """
    full = (width, width - REMAINDER, REMAINDER), Packing(batch=3, rows=2, width=width)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), plain_attention(), set_zero3_state():
        model = small_model(auto_class, config, trust_remote_code)
        for form in forms_of(model.config) if model is not None else ():
            if keeps_apart(model, form, *SHORT) and keeps_apart(model, form, *full):
                return form
    attention = (config if model is None else model.config)._attn_implementation
    raise UserError(
        f"--pack: models of the type {config.model_type} do not keep the features of a row of {width} tokens apart"
        f"{f', with {attention} attention' if attention else ''}; omit it, and use --length_buckets auto"
    )


def forms_of(config) -> Iterator[PackedForm]:
    """Yield the forms in which a model may take packed rows: each mask, with the first position 0 or RoBERTa's."""
    for mask in (block_mask, causal_block_mask, causal_block_flags):
        for first_position in (0, (config.pad_token_id or 0) + 1):
            yield PackedForm(mask, first_position)


def keeps_apart(model: torch.nn.Module, form: PackedForm, lengths: tuple[int, ...], packing: Packing) -> bool:
    """Return whether the model computes the same for packed features of some lengths as for each of them alone."""
    padding = SimpleNamespace(pad_token_id=model.config.pad_token_id or 0, pad_token_type_id=0)
    ids = torch.arange(model.config.vocab_size)
    ids = ids[ids != padding.pad_token_id]
    texts = ids[torch.arange(sum(lengths)) % len(ids)].split(lengths)
    features = [{"input_ids": text.numpy(), "packing": packing} for text in texts]
    batch = PackingCollator(padding, form.first_position)(features)
    try:
        alone = [model(input_ids=text[None], attention_mask=torch.ones_like(text)[None]) for text in texts]
        packed = packed_forward(model, form)(**batch)
    except Exception:  # of the model's code: it takes no such mask, or no positions
        return False
    differences = [
        (side[0] - together[: side.shape[1]]).abs().max() / side.abs().max()
        for name in ("start_logits", "end_logits")
        for side, together in zip((output[name] for output in alone), packed[name])
    ]
    return all(difference <= NEAR for difference in differences)


def small_model(auto_class: type, config, trust_remote_code: bool) -> torch.nn.Module | None:
    """Return a random model with one layer of each kind, in which each token has an effect on those that see it.

    None where the model cannot have other layers than its own.
    """
    small = copy.deepcopy(config)
    small.vocab_size = min(small.vocab_size, VOCABULARY)
    if (small.pad_token_id or 0) >= small.vocab_size:
        small.pad_token_id = 0
    try:
        if kinds := getattr(small, "layer_types", None):
            small.layer_types = [*dict.fromkeys(kinds)]
        small.num_hidden_layers = len(small.layer_types) if kinds else 1
        model = auto_class.from_config(small, trust_remote_code=trust_remote_code).float().eval()
    except Exception:  # of the model's code
        return None
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(std=weight.shape[-1] ** -0.5)
    return model
