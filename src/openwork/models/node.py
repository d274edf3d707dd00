"""A place where nodes live: what every model puts wherever its sites are, so that a site is a place in the module tree.

It passes its input on. With AbsTopK (Gao et al. 2025, arXiv 2511.13653) only the k nodes that are largest in size stay,
token by token or image by image. Knows tensors. Does not know models or graphs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Node(nn.Module):
    """Passes its input on, keeping of every token or image only the `k` largest nodes; nodes are on the last axis.

    maps    nodes are the channels [B, C, ...] of images, a node's size is the sum of its map's sizes
    """

    def __init__(self, k: int | None = None, maps: bool = False) -> None:
        super().__init__()
        self.k, self.maps = k, maps

    def forward(self, x: Tensor) -> Tensor:
        if self.k is None:
            return x
        if self.maps and x.dim() > 2:
            size = x.detach().abs().flatten(2).sum(-1)
            return x * largest_in_rows(size, self.k).view(*size.shape, *[1] * (x.dim() - 2))
        return x * largest_in_rows(x.detach(), self.k)


def share_of(size: int, share: float) -> int | None:
    """k of a site of so many nodes of which a share is to stay, at least 1; None where all stay."""
    return max(1, int(share * size)) if share < 1 else None


def largest_in_rows(x: Tensor, k: int) -> Tensor:
    """Mask [..., n] of the k largest |x| of every row, by selection instead of sorting.

    On a CPU all entries as large as the k-th stay, so equals may be more than k (zeros, as a rule); elsewhere k do.
    """
    n = x.shape[-1]
    if k >= n:
        return torch.ones_like(x, dtype=torch.bool)
    if x.device.type != "cpu" or x.dtype != torch.float32:
        best = x.abs().topk(k, dim=-1, sorted=False).indices
        return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, best, True)
    size = np.abs(x.contiguous().numpy()).reshape(-1, n)
    bits = size.view(np.int32)  # in the order of the floats, since none is negative; selects faster than floats
    threshold = np.partition(bits, n - k, axis=-1)[:, n - k : n - k + 1]
    return torch.from_numpy(bits >= threshold).view(x.shape)
