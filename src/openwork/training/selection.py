"""Keeping exactly the k largest entries of a weight, by selection instead of sorting.

A floor asks that every row (or column) keeps at least j entries: the j largest of each are kept first, and they
count inside k. If the floors alone need more than k, they win and more than k entries stay. Equal sizes are told
apart by their index: the lower one stays.

`Kept` is the CPU way. It remembers the entries of the last step, and bounds the answer by them: k entries that
satisfy the floors exist with sizes known now, so only what is at least as large can take their place. As a rule
nothing is, and a step costs k gathers and one comparison of the matrix. The bound is exact whatever the weights did,
so a `Kept` that has forgotten everything gives the same answer. `largest` is the way of every other device: plain
torch that does not wait for the device.

Knows tensors and numbers. Does not know models, optimizers or schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CROWDED = 0.08  # kept share above which one threshold for the whole weight is faster than remembered entries

Index = NDArray[np.int64]
Sizes = NDArray[Any]  # |weight|, float32 or float64


class Floor(NamedTuple):
    """At least `least` entries stay in every slice of an axis: axis 0 for rows [dst, ...], axis 1 for columns."""

    axis: int
    least: int


def default_floor(density: float, length: int) -> int:
    """The floor of a slice of `length` entries: min(4, ceil(density * length)); 4 is the published one."""
    return min(4, int(np.ceil(density * length)))


class Kept:
    """The entries that one weight [n], [dst, src] or [dst, src, ...] keeps, remembered from step to step."""

    def __init__(self, floors: Sequence[Floor] = ()) -> None:
        self.floors = tuple(floors)
        self._index: Index | None = None  # flat, ascending
        self._cut: Any = None  # the last threshold, while much is kept

    def project_(self, weight: Tensor, k: int) -> None:
        """Sets all but the k largest entries to zero, in place; floors may keep more."""
        if k >= weight.numel():
            return
        if weight.is_cuda or weight.dtype not in (torch.float32, torch.float64) or not weight.is_contiguous():
            weight.mul_(largest(weight.abs(), k, self.floors))
            return
        size = np.abs(weight.numpy())
        crowded = k > (CROWDED if self._index is None else 3 * CROWDED) * size.size
        if crowded and self._plain_(weight, size, k):
            return
        values = weight.view(-1).numpy()
        self._index = self._select(size, k)
        kept = values[self._index]
        values.fill(0)
        values[self._index] = kept

    def _plain_(self, weight: Tensor, size: Sizes, k: int) -> bool:
        """Cuts at the k-th largest size, if no floor and no tie asks for more than that; says whether it did."""
        threshold = self._cut = self._threshold(size.reshape(-1), k)
        stays = size >= threshold
        for floor in self.floors:
            others = tuple(a for a in range(size.ndim) if a != floor.axis)
            if np.count_nonzero(stays, axis=others).min() < floor.least:
                return False
        if threshold == 0 or np.count_nonzero(stays) > k:
            return False
        torch.hardshrink(weight, float(np.nextafter(threshold, size.dtype.type(0))), out=weight)
        self._index = None
        return True

    def _threshold(self, size: Sizes, k: int) -> Any:
        """The k-th largest of flat sizes, looked for near the last one first."""
        if self._cut is not None:
            above = np.count_nonzero(size >= self._cut * 1.1)
            near = size[(size >= self._cut * 0.9) & (size < self._cut * 1.1)]
            if above < k <= above + len(near):
                return np.partition(near, above + len(near) - k)[above + len(near) - k]
        return np.partition(size, len(size) - k)[len(size) - k]

    def _select(self, size: Sizes, k: int) -> Index:
        """Flat indices of the entries that stay, ascending.

        size    like the weight
        """
        before = self._index
        if before is None or len(before) < k:
            before = np.arange(size.size)
        kept = self._smallest_dropped(before, size, k)
        bound = self._bound(kept, size)
        rivals = size >= bound
        if np.count_nonzero(rivals) == len(kept):
            return kept
        return self._smallest_dropped(np.flatnonzero(rivals), size, k)

    def _slices(self, index: Index, shape: tuple[int, ...]) -> list[Index]:
        """Per floor, the slice that each entry lies in."""
        inner = int(np.prod(shape[1:]))
        deeper = int(np.prod(shape[2:]))
        return [index // inner if f.axis == 0 else index % inner // deeper for f in self.floors]

    def _smallest_dropped(self, index: Index, size: Sizes, k: int) -> Index:
        """The given entries without the smallest ones, until k are left or only what the floors ask for.

        An entry that is r-th from below in a slice of c entries may go if r < c - floor, in all its slices.
        """
        drop = len(index) - k
        if drop <= 0:
            return index
        value = size.reshape(-1)[index]
        slices = self._slices(index, size.shape)
        counts = [np.bincount(s, minlength=size.shape[f.axis]) for s, f in zip(slices, self.floors, strict=True)]
        if len(self.floors) == 1:
            drop = min(drop, int(np.maximum(counts[0] - self.floors[0].least, 0).sum()))
            if drop == 0:
                return index
        look = drop + (64 + drop // 4 if self.floors else 0)  # a few more than must go, since some may be asked for
        while True:
            look = min(look, len(index))
            low = np.flatnonzero(value <= np.partition(value, look - 1)[look - 1])
            low = low[np.lexsort((-low, value[low]))]  # smallest first; among equals the higher index first
            free = np.ones(len(low), dtype=bool)
            for of, count, floor in zip(slices, counts, self.floors, strict=True):
                free &= _rank_within(of[low]) < (count - floor.least)[of[low]]
            gone = low[free][:drop]
            if len(gone) == drop or len(low) == len(index):
                return np.delete(index, gone)
            look *= 4

    def _bound(self, kept: Index, size: Sizes) -> Sizes:
        """What an entry must reach to take a place, as an array that broadcasts against `size`.

        That is the smallest kept entry that no floor asks for; in a slice that keeps smaller ones, the smallest there.
        """
        value = size.reshape(-1)[kept]
        slices = self._slices(kept, size.shape)
        counts = [np.bincount(s, minlength=size.shape[f.axis]) for s, f in zip(slices, self.floors, strict=True)]
        free = np.ones(len(kept), dtype=bool)
        for of, count, floor in zip(slices, counts, self.floors, strict=True):
            free &= (count > floor.least)[of]
        common = value[free].min() if free.any() else value.dtype.type(np.inf)
        small = np.flatnonzero(value < common)
        bound = np.full((1,) * size.ndim, common)
        for of, floor in zip(slices, self.floors, strict=True):
            per_slice = np.full(size.shape[floor.axis], common)
            np.minimum.at(per_slice, of[small], value[small])
            bound = np.minimum(bound, per_slice.reshape([-1 if a == floor.axis else 1 for a in range(size.ndim)]))
        return bound


def _rank_within(group: Index) -> Index:
    """How many earlier entries belong to the same group: [0, 0, 1, 2, 1] for groups [a, b, a, a, b]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)  # place minus the group's first place
    return rank


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
