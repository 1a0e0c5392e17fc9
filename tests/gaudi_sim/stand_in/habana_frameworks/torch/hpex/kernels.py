"""Fused kernels that optimum-habana's models ask for. Those that are absent here it replaces by plain operations.

As on a real card they refuse tensors that are elsewhere.
"""

import torch


def check_on_card(kernel: str, *tensors: torch.Tensor) -> None:
    """Raise a RuntimeError for a tensor that is not on the card."""
    for tensor in tensors:
        if tensor.device.type != "hpu":
            raise RuntimeError(f"simulated Gaudi: {kernel} takes tensors on hpu, this one is on {tensor.device}")


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
        check_on_card("FusedSDPA", query, key, value)
        if valid_sequence_lengths is not None:
            raise NotImplementedError("simulated Gaudi: FusedSDPA with valid_sequence_lengths")
        return torch.nn.functional.scaled_dot_product_attention(
            *(query, key, value, attn_mask, dropout_p, bool(is_causal)),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


class RotaryPosEmbeddingHelperV2:
    """Rotary positions: the two halves of a head's numbers turn against each other.

    Mistral of optimum-habana 1.21.2 knows no other way on a card.
    """

    @staticmethod
    def apply(states, cos, sin, position_ids=None):
        """`states` (batch, heads, length, size); tables `cos` and `sin` (1, 1, positions, size)."""
        check_on_card("RotaryPosEmbeddingHelperV2", states, cos, sin)
        if position_ids is not None:
            cos, sin = (table[0, 0][position_ids].unsqueeze(1) for table in (cos, sin))
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat([-second, first], dim=-1) * sin
