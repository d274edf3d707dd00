"""Keeping exactly the k largest entries of a weight, by selection instead of sorting.

A floor asks that every row (or column) keeps at least j entries: the j largest of each are kept first, and they
count inside k. If the floors alone need more than k, they win and more than k entries stay. Equal sizes are told
apart by their index: the lower one stays.

`project_` is the CPU way: the sizes of floats are in the order of their bits, and NumPy partitions short rows of
integers several times faster than it does floats. `largest` is the way of every other device: plain torch that does not
wait for the device. Neither remembers anything, and both give the same answer.

Knows tensors and numbers. Does not know models, optimizers or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 4096  # entries that say where a threshold should be
BITS = {torch.float32: np.int32, torch.float64: np.int64}

Bits = NDArray[Any]  # |weight| as integers of its size
Mask = NDArray[np.bool_]


class Floor(NamedTuple):
    """At least `least` entries stay in every slice of an axis: axis 0 for rows [dst, ...], axis 1 for columns."""

    axis: int
    least: int


def default_floor(density: float, length: int) -> int:
    """The floor of a slice of `length` entries: min(4, ceil(density * length)); 4 is the published one."""
    return min(4, int(np.ceil(density * length)))


def project_(weight: Tensor, k: int, floors: Sequence[Floor] = ()) -> None:
    """Sets all but the k largest entries of a weight to zero, in place; floors may keep more."""
    if k >= weight.numel():
        return
    if weight.device.type != "cpu" or weight.dtype not in BITS or not weight.is_contiguous():
        weight.mul_(largest(weight.abs(), k, floors))
        return
    values = weight.numpy()
    np.multiply(values, _largest_bits(np.abs(values).view(BITS[weight.dtype]), k, floors), out=values)


def _largest_bits(bits: Bits, k: int, floors: Sequence[Floor]) -> Mask:
    """Mask of the k largest entries, like `bits`, which it uses up."""
    forced = np.zeros(bits.shape, dtype=bool)
    masks = [_demanded_bits(bits, floor) for floor in floors]
    for mask in masks:
        forced |= mask
    wanted = k - (int(np.count_nonzero(forced)) if floors else 0)
    if wanted <= 0:
        return forced
    np.copyto(bits, -1, where=forced)
    flat = bits.reshape(-1)
    threshold = kth_largest(flat, wanted)
    stays = bits >= threshold
    if (extra := np.count_nonzero(stays) - wanted) > 0:  # equals: those of higher index go
        stays.reshape(-1)[np.flatnonzero(flat == threshold)[-extra:]] = False
    stays |= forced
    return stays


def _demanded_bits(bits: Bits, floor: Floor) -> Mask:
    """Mask of the entries that a floor asks for: the largest of every slice, the lower index first among equals."""
    moved = np.moveaxis(bits, floor.axis, 0)
    slices = np.ascontiguousarray(moved).reshape(len(moved), -1)
    n, least = slices.shape[1], min(floor.least, slices.shape[1])
    threshold = np.partition(slices, n - least, axis=1)[:, n - least : n - least + 1]
    mask = slices >= threshold
    if np.count_nonzero(mask) > least * len(mask):
        tied = np.flatnonzero(np.count_nonzero(mask, axis=1) > least)
        mask[tied] = False
        best = np.argsort(-slices[tied], axis=1, kind="stable")[:, :least]
        mask[tied[:, None], best] = True
    return np.moveaxis(mask.reshape(moved.shape), 0, floor.axis)


def kth_largest(flat: Bits, k: int) -> int:
    """The k-th largest of flat integers, 1 <= k <= len; looked for where a sample of them says that it should be.

    The place is the sample's own quantile with four standard deviations on either side. What lies above and in it is
    counted, so that the answer is exact whatever the sample says: where the place was wrong, all are looked through.
    """
    n = len(flat)
    if n > 4 * SAMPLE:
        sample = np.sort(flat[:: n // SAMPLE | 1])  # an odd step, so that no column of a matrix is all that it sees
        m = len(sample)
        rank, slack = m * k / n, 4 * np.sqrt(m * k / n * (1 - k / n)) + 4
        low, high = sample[max(0, int(m - rank - slack))], sample[min(m - 1, int(m - rank + slack))]
        above = int(np.count_nonzero(flat > high))
        near = flat[(flat >= low) & (flat <= high)]
        if above < k <= above + len(near):
            flat, n, k = near, len(near), k - above
    return int(np.partition(flat, n - k)[n - k])


def largest(size: Tensor, k: int, floors: Sequence[Floor] = ()) -> Tensor:
    """Mask of the k largest entries, like `size`, on any device; waits for the device only where two floors meet.

    size    [n], [dst, src] or [dst, src, ...], not negative
    """
    if k >= size.numel():
        return torch.ones_like(size, dtype=torch.bool)
    if not floors:
        return first_k(size.flatten(), k).view(size.shape)
    forced = demanded(size, floors)
    # one floor asks for the same number at every step; where rows and columns both ask, their union must be counted
    sure = floors[0].least * size.shape[floors[0].axis] if len(floors) == 1 else int(forced.sum())
    ranked = size.masked_fill(forced, torch.inf)
    return first_k(ranked.flatten(), max(k, sure)).view(size.shape)


def demanded(size: Tensor, floors: Sequence[Floor]) -> Tensor:
    """Mask of the entries that the floors ask for: the largest of every slice."""
    forced = torch.zeros_like(size, dtype=torch.bool)
    for floor in floors:
        moved = size.movedim(floor.axis, 0)
        slices = moved.flatten(1)
        best = torch.sort(slices, dim=1, descending=True, stable=True).indices[:, : floor.least]
        mask = torch.zeros_like(slices, dtype=torch.bool).scatter_(1, best, True)
        forced |= mask.view(moved.shape).movedim(0, floor.axis)
    return forced


def largest_outside(kept: Sequence[Tensor], sizes: Sequence[Tensor], places: int) -> list[Tensor]:
    """Masks of the largest entries of several tensors together that are not kept: `places` of them, or all there are.

    kept, sizes    per tensor, a mask and what to rank by (not negative), of one shape
    """
    ranked = torch.cat([s.masked_fill(m, -1).flatten() for m, s in zip(kept, sizes, strict=True)])
    chosen = (first_k(ranked, places) & (ranked >= 0)).split([s.numel() for s in sizes])
    return [c.view(s.shape) for c, s in zip(chosen, sizes, strict=True)]


def first_k(size: Tensor, k: int) -> Tensor:
    """Mask [n] of the k largest of a flat tensor, the lower index first among equals."""
    if k <= 0:
        return torch.zeros_like(size, dtype=torch.bool)
    if k >= len(size):
        return torch.ones_like(size, dtype=torch.bool)
    if size.is_cuda:
        threshold = torch.topk(size, k, sorted=False).values.min()
    else:
        threshold = torch.from_numpy(np.partition(size.numpy(), len(size) - k)[len(size) - k : len(size) - k + 1])
    above = size > threshold
    ties = size == threshold
    return above | (ties & (ties.cumsum(0) <= k - above.sum()))
