"""Workarounds for optimum-habana 1.21.2, its last release. See the table in `qa.upstream`."""

import torch
import transformers
from torch.utils.checkpoint import checkpoint


class GaudiCorrections:
    """Mixin for GaudiTrainer: corrections of its loss, log, gradient checkpointing, compiled evaluation and written answers."""

    compiled = None

    def _wrap_model(self, model, training=True, dataloader=None):
        """Return the model to train, or for an evaluation the compiled one where flags compile.

        GaudiTrainer compiles the model that it trains, and evaluates the one within it.
        """
        wrapped = super()._wrap_model(model, training, dataloader)
        if training and self.args.gradient_checkpointing:
            checkpoint_layers(self.model, self.args.gradient_checkpointing_kwargs)
        if training or not self.args.torch_compile or self.is_deepspeed_enabled:  # DeepSpeed compiles a model in place
            return wrapped
        if self.compiled is None:
            self.compiled = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.compiled

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss; in training divided by the accumulated steps, as transformers' `training_step` divides it.

        GaudiTrainer divides in lazy mode with --pipelining_fwd_bwd only, so that gradients grow with the steps.
        """
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        divided = self.args.use_lazy_mode and self.args.pipelining_fwd_bwd
        by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        if not model.training or divided or by_tokens or self.compute_loss_func is not None:
            return computed
        steps = self.current_gradient_accumulation_steps
        return (computed[0] / steps, computed[1]) if return_outputs else computed / steps

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, **kwargs):
        """Do what the base does; GaudiTrainer logs the norm of gradients only in the shape of Habana's own function."""
        if self.control.should_log and isinstance(grad_norm, torch.Tensor):
            grad_norm = grad_norm.reshape(1)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        """Do what the base does; GaudiSeq2SeqTrainer waits for other ranks in eager mode, also where there are none."""
        rank = self.args.local_rank
        self.args.local_rank = rank if self.args.world_size > 1 else -1
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.args.local_rank = rank

    def get_batch_samples_transformers(self, epoch_iterator, num_batches, device):
        """Return what transformers' own does: GaudiTrainer's miscounts the labels of batches of different widths."""
        return self.get_batch_samples(epoch_iterator, num_batches, device)


def checkpoint_layers(model: torch.nn.Module, settings: dict | None) -> None:
    """Let a model that a GaudiTrainer trains checkpoint its layers by PyTorch's own function, without reentrant autograd.

    optimum-habana replaces that function. Its own calls a private one by position, which has one more parameter since
    PyTorch 2.9; the one for DeepSpeed makes a tuple of a layer's only tensor. With reentrant autograd its T5, which hands
    the bias of positions on by name, would repeat its layers without end.

    Args:
        settings: the value of --gradient_checkpointing_kwargs.
    """
    torch.utils.checkpoint.checkpoint = transformers.modeling_utils.checkpoint = checkpoint
    model.gradient_checkpointing_enable({**(settings or {}), "use_reentrant": False})


def support_albert_checkpointing() -> None:
    """Let ALBERT train with --gradient_checkpointing: transformers supports that for almost every other model."""
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.models.albert.modeling_albert import AlbertLayerGroup, AlbertPreTrainedModel

    AlbertLayerGroup.__bases__ = (GradientCheckpointingLayer,)
    AlbertPreTrainedModel.supports_gradient_checkpointing = True


def patch_attention() -> None:
    """Correct the attention that Habana's kernel computes; each object of training arguments installs optimum-habana's again.

    - BERT and XLM-RoBERTa train with the dropout of their configurations. optimum-habana's forwards pass 0 to the kernel,
      call themselves without an end for what it does not compute, and XLM-RoBERTa's needs a method of an older transformers.
    - With --attn_implementation gaudi_fused_sdpa decoders see no padding and no later tokens: transformers makes masks only
      for the names of attentions that it knows a kind of mask for.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.models.bert.modeling_bert import BertSdpaSelfAttention
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSdpaSelfAttention

    for attention in (BertSdpaSelfAttention, XLMRobertaSdpaSelfAttention):
        attention.forward = fused_attention
    ALL_MASK_ATTENTION_FUNCTIONS.register("gaudi_fused_sdpa", ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def fused_attention(
    attention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    head_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    past_key_value=None,
    output_attentions: bool = False,
    cache_position: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """Compute the self-attention of an encoder with Habana's kernel; anything else as `eager` does.

    Args:
        hidden_states: (batch, length, size).
        attention_mask: added to the scores, (batch, 1, length or 1, length).
    """
    absolute = attention.position_embedding_type == "absolute"
    others = (head_mask, encoder_hidden_states, past_key_value)
    if not absolute or output_attentions or attention.is_decoder or any(other is not None for other in others):
        eager = type(attention).__base__.forward
        return eager(attention, hidden_states, attention_mask, *others, output_attentions, cache_position)
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    heads = (*hidden_states.shape[:-1], attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        layer(hidden_states).view(heads).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
    )
    mask = None if attention_mask is None else attention_mask.to(query.dtype)
    dropout, softmax = (attention.dropout_prob, "None") if attention.training else (0.0, "fast")
    mixed = FusedSDPA.apply(query, key, value, mask, dropout, False, None, softmax, False)
    return mixed.transpose(1, 2).flatten(2), None


def patch_bart() -> None:
    """Let BART run on a Gaudi: optimum-habana's forwards expect an older BART than transformers 4.55.4 has.

    Those forwards keep static shapes in generation, which transformers' own do not. So they get back what transformers
    removed: splitting states into heads, attention over flat and scaled states, a flag, and the reordering of cached
    states between beams. Each new object of training arguments installs optimum-habana's forwards again.
    """
    from optimum.habana.transformers.models.bart import modeling_bart as habana
    from transformers.models.bart import modeling_bart as bart

    bart.BartAttention._shape = split_heads
    habana.eager_attention_forward = attention_of_flat_heads
    bart.BartDecoder._use_sdpa = False
    bart.BartModel.forward = bart_forward
    bart.BartForConditionalGeneration._reorder_cache = staticmethod(reorder_beams)


def split_heads(attention, states: torch.Tensor, length: int, batch: int) -> torch.Tensor:
    """Split states of shape (batch, length, heads * size) into (batch, heads, length, size)."""
    return states.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


def attention_of_flat_heads(attention, query, key, value, attention_mask, scaling=None, **settings):
    """Call transformers' attention of BART on states of (batch * heads, length, size); the query is scaled already."""
    from transformers.models.bart.modeling_bart import eager_attention_forward

    states = [flat.unflatten(0, (-1, attention.num_heads)) for flat in (query, key, value)]
    return eager_attention_forward(attention, *states, attention_mask, scaling=1.0, **settings)


def bart_forward(model, *args, use_cache: bool | None = None, token_idx: torch.Tensor | None = None, **kwargs):
    """Call optimum-habana's forward of BartModel, which takes the use of a cache for generation: only that has a token_idx."""
    from optimum.habana.transformers.models.bart.modeling_bart import gaudi_BartModel_forward

    use_cache = use_cache if token_idx is not None else False
    return gaudi_BartModel_forward(model, *args, use_cache=use_cache, token_idx=token_idx, **kwargs)


def reorder_beams(past_key_values: tuple, beams: torch.Tensor) -> tuple:
    """Return the decoder's states of the beams that go on; those of the encoder are the same for all beams of a text."""
    return tuple((*(states.index_select(0, beams) for states in layer[:2]), *layer[2:]) for layer in past_key_values)
