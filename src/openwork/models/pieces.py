"""Pieces of a transformer's forward pass that keep its heads apart. Knows `models.transformer`; holds no weights.

Shapes: B sequences, T positions, D residual channels, H heads of d channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openwork.models.transformer import Attention, Transformer


def embedded(model: Transformer, tokens: Tensor) -> Tensor:
    """The stream [B, T, D] before the first block."""
    x = model.embed(tokens)
    if model.positions is not None:
        x = x + model.positions(torch.arange(tokens.shape[1], device=tokens.device))
    return x


def by_head(x: Tensor, norm: nn.Module, to: nn.Linear, n_head: int) -> Tensor:
    """Queries, keys or values [B, T, H d] of heads that each read a stream [B, T, H, D], or all one [B, T, 1, D]."""
    x = norm(x)
    if x.shape[-2] == 1:
        return to(x[..., 0, :])
    weight = to.weight.view(n_head, -1, to.in_features)  # [H, d, D]
    return torch.einsum("bthd,hcd->bthc", x, weight).flatten(-2) + to.bias


def head_outputs(attn: Attention, mixed: Tensor, n_head: int) -> Tensor:
    """What every head writes [B, T, H, D], without the output's bias, of the mixed values [B, T, H d]."""
    weight = attn.out.weight.view(attn.out.out_features, n_head, -1)  # [D, H, d]
    return torch.einsum("bthc,dhc->bthd", mixed.unflatten(-1, (n_head, -1)), weight)


__all__ = ["by_head", "embedded", "head_outputs"]
