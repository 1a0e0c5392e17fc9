"""Fused kernels that optimum-habana's models ask for. Those that are absent here it replaces by plain operations."""

import torch


class FusedSDPA:
    """Attention."""

    @staticmethod
    def apply(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        softmax_mode="None",
        recompute_mode=None,
        valid_sequence_lengths=None,
        padding_side="left",
    ):
        if valid_sequence_lengths is not None:
            raise NotImplementedError("simulated Gaudi: FusedSDPA with valid_sequence_lengths")
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
