"""Keeping exactly the k largest entries of a matrix, by selection instead of sorting.

The CPU path is np.partition for the threshold and one vectorised hardshrink pass for the masking, which on matrices of
a million entries is about a tenth of the cost of torch.topk and a mask. The general path runs wherever torch runs
and never waits for the device. Both keep exactly k; equal sizes are told apart by their index, the lower one wins.

A floor asks that every row (or column) keeps at least j entries: the j largest of each are kept first, and they
count inside k. If the floors alone need more than k, they win and more than k entries stay.

Knows tensors and numbers. Does not know models, optimizers or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Floor(NamedTuple):
    """At least `least` entries stay in every slice of an axis: axis 0 for rows [dst, ...], axis 1 for columns."""

    axis: int
    least: int


def keep_largest_(weight: Tensor, k: int, floors: Sequence[Floor] = ()) -> None:
    """Sets all but the k largest entries of a weight [dst, ...] or [n] to zero, in place.

    k       entries that stay; floors may keep more
    floors  at most one per axis
    """
    if k >= weight.numel():
        return
    if weight.is_cuda or weight.numel() == 0 or not weight.is_contiguous():
        weight.mul_(largest(weight.abs(), k, floors))
        return
    flat = weight.view(-1)
    size = flat.abs()
    array: NDArray[Any] = size.numpy()
    threshold = np.partition(array, array.size - k)[array.size - k]
    if floors:
        short = [_short(size.view(weight.shape), f, float(threshold)) for f in floors]
        if any(s.numel() for s in short):
            kept = torch.from_numpy(_with_floors(array.reshape(len(weight), -1), k, threshold, floors, short))
            values = flat[kept]
            flat.zero_()
            flat[kept] = values
            return
    if threshold == 0:
        return  # fewer than k are nonzero already
    below = float(np.nextafter(threshold, np.zeros_like(threshold)))
    torch.hardshrink(flat, below, out=flat)  # keeps sizes > below, that is >= threshold
    extra = int(torch.count_nonzero(flat)) - k
    if extra > 0:
        ties = np.flatnonzero(array == threshold)
        flat[torch.from_numpy(ties[len(ties) - extra :])] = 0.0


def _short(size: Tensor, floor: Floor, threshold: float) -> Tensor:
    """Indices of the slices in which fewer entries than the floor asks for reach the threshold."""
    dims = [d for d in range(size.dim()) if d != floor.axis]
    return (torch.count_nonzero(size >= threshold, dim=dims) < floor.least).nonzero().flatten()


def _with_floors(
    size: NDArray[Any], k: int, threshold: Any, floors: Sequence[Floor], short: Sequence[Tensor]
) -> NDArray[np.int64]:
    """Flat indices of the entries that stay, when the plain threshold leaves some slices below their floor.

    The answer lies within the entries that reach the threshold and the largest of the short slices, because raising
    the threshold never takes an entry that a floor asks for. So only this pool is sorted.

    size  [dst, src]
    """
    flat = size.reshape(-1)
    pool = [np.flatnonzero(flat >= threshold)]
    index = np.arange(flat.size).reshape(size.shape)
    for floor, slices in zip(floors, short, strict=True):
        if len(slices):
            rows, ids = (a[slices.numpy()] if floor.axis == 0 else a[:, slices.numpy()].T for a in (size, index))
            best = np.argsort(-rows, axis=1, kind="stable")[:, : floor.least]
            pool.append(np.take_along_axis(ids, best, axis=1).ravel())
    candidates = np.unique(np.concatenate(pool))
    value = flat[candidates]
    order = np.argsort(-value, kind="stable")  # by size, then by index
    candidates = candidates[order]
    forced = np.zeros(len(candidates), dtype=bool)
    for floor in floors:
        slice_of = candidates // size.shape[1] if floor.axis == 0 else candidates % size.shape[1]
        forced |= _rank_within(slice_of) < floor.least
    rest = np.flatnonzero(~forced)[: max(0, k - int(forced.sum()))]
    forced[rest] = True
    return candidates[forced]


def _rank_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries belong to the same group: [0, 0, 1, 2, 1] for groups [a, b, a, a, b]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return rank


def largest(size: Tensor, k: int, floors: Sequence[Floor] = ()) -> Tensor:
    """Mask of the k largest entries, like `size`; runs on any device and does not wait for it unless two floors meet.

    size    [dst, ...] or [n], not negative
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
        slices = size.movedim(floor.axis, 0).flatten(1)
        best = torch.sort(slices, dim=1, descending=True, stable=True).indices[:, : floor.least]
        mask = torch.zeros_like(slices, dtype=torch.bool).scatter_(1, best, True)
        moved = size.movedim(floor.axis, 0).shape
        forced |= mask.view(moved).movedim(0, floor.axis)
    return forced


def first_k(size: Tensor, k: int) -> Tensor:
    """Mask [n] of the k largest of a flat tensor, the lower index first among equals."""
    if k <= 0:
        return torch.zeros_like(size, dtype=torch.bool)
    if k >= len(size):
        return torch.ones_like(size, dtype=torch.bool)
    if size.is_cuda:
        threshold = torch.topk(size, k, sorted=False).values.min()
    else:
        array = size.numpy()
        threshold = torch.as_tensor(np.partition(array, len(array) - k)[len(array) - k])
    above = size > threshold
    ties = size == threshold
    return above | (ties & (ties.cumsum(0) <= k - above.sum()))


def leading(least: int | None, density: float, length: int) -> int:
    """The floor of a slice of `length` entries; by default min(4, ceil(density * length)), as published."""
    want = min(4, -int(-density * length // 1)) if least is None else least
    return min(want, length)

