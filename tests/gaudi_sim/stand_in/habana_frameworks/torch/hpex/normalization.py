"""Fused normalizations, as plain operations."""

import torch

from habana_frameworks.torch.hpex.kernels import check_on_card


class FusedClipNorm:
    """Scales gradients down to a norm."""

    def __init__(self, parameters, max_norm: float):
        self.max_norm = max_norm

    def clip_norm(self, parameters) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class FusedRMSNorm:
    @staticmethod
    def apply(hidden, weight, epsilon):
        check_on_card("FusedRMSNorm", hidden, weight)
        variance = hidden.float().pow(2).mean(-1, keepdim=True)
        return weight * (hidden.float() * torch.rsqrt(variance + epsilon)).to(hidden.dtype)
