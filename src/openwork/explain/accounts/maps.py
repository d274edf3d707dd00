"""The linear maps between the sites of a frozen run: a link with its ablated edges taken out.

A map is asked five things: what it brings forward, what it hands back (transposed), what passes along each edge, what
is the strongest that arrives (for the search of single paths), and what feeds one vertex. See `account`.

Knows matrices, attention patterns, kernels. Does not know models, inputs or what is accounted for.

Shapes: B inputs, * the vertices of a site, which are its nodes at every position: [n], [T, n] or [n, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

Feed = tuple[NDArray[np.int64], NDArray[np.float64]]  # vertices of the source, and their coefficients

ROOM = 1 << 22  # numbers held at once while the strongest of many products is looked for


class Map(Protocol):
    """A link with its ablated edges taken out, as a linear map from the vertices of `src` to sums at `dst`."""

    name: str
    src: str
    dst: str

    def __call__(self, h: Tensor) -> Tensor:
        """What it brings to dst [B, *] of what src sends [B, *]."""
        ...

    def back(self, g: Tensor) -> Tensor:
        """The transposed map: coefficients at src [B, *] of coefficients at the sums of dst [B, *]."""
        ...

    def edges(self, g: Tensor, h: Tensor) -> Tensor:
        """What passes along each edge: [B, dst, src], or [B, n] of sums; summed over positions."""
        ...

    def strongest(self, m: Tensor) -> Tensor:
        """Per vertex of dst the largest |coefficient| * m over what feeds it; of one input, m [1, *]."""
        ...

    def count(self, n: Tensor) -> Tensor:
        """Per vertex of dst the sum of n over what feeds it with a coefficient that is not 0; of one input."""
        ...

    def feed(self, vertex: int) -> Feed:
        """What feeds a vertex of dst; of one input."""
        ...

    def toward(self, answer: Tensor, against: Tensor) -> Tensor:
        """Coefficients at src [B, *] of node `answer` minus node `against` of dst."""
        ...

    def row(self, b: int) -> Map:
        """The map as it is on input b."""
        ...


class Matrix:
    """A matrix [dst, src], the same at all positions. Most rows and columns of a circuit's are 0 and are skipped.

    per  how many vertices of a source node stand side by side, where it reads whole maps at once ([n, H, W] flat)
    """

    def __init__(self, name: str, src: str, dst: str, weight: Tensor, per: int = 1) -> None:
        self.name, self.src, self.dst, self.weight, self.per = name, src, dst, weight, per
        self.rows = (weight != 0).any(1).nonzero().flatten()
        self.columns = (weight != 0).any(0).nonzero().flatten()
        self.small = weight[self.rows][:, self.columns]
        self.sparse = 4 * self.small.numel() < weight.numel()
        self._shape: tuple[int, ...] = ()  # of one source node's map, where per > 1
        self._array = weight.numpy()

    def __call__(self, h: Tensor) -> Tensor:
        if self.per > 1:
            self._shape = tuple(h.shape[1:])
        return self._each(h, lambda part: part @ self.small.T) if self.sparse else self._flat(h) @ self.weight.T

    def back(self, g: Tensor) -> Tensor:
        if not self.sparse:
            return self._maps(g @ self.weight)
        out = g.new_zeros(*g.shape[:-1], self.weight.shape[1])
        out[..., self.columns] = g[..., self.rows] @ self.small
        return self._maps(out)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.per > 1 else x

    def _maps(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, self._shape) if self.per > 1 else x

    def edges(self, g: Tensor, h: Tensor) -> Tensor:
        g, h = (x.unsqueeze(1) if x.dim() == 2 else x for x in (g, self._flat(h)))
        if self.sparse:
            out = g.new_zeros(len(g), *self.weight.shape)
            some = self.small * (g[..., self.rows].mT @ h[..., self.columns])
            out[:, self.rows[:, None], self.columns] = some
        else:
            out = self.weight * (g.mT @ h)
        return out.unflatten(-1, (-1, self.per)).sum(-1) if self.per > 1 else out

    def strongest(self, m: Tensor) -> Tensor:
        return self._each(m, lambda part: largest(self.small.abs(), part))

    def count(self, n: Tensor) -> Tensor:
        return self._each(n, lambda part: part @ (self.small != 0).double().T)

    def _each(self, x: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        x = self._flat(x)
        out = x.new_zeros(*x.shape[:-1], len(self.weight))
        out[..., self.rows] = of(x[..., self.columns])
        return out

    def feed(self, vertex: int) -> Feed:
        at, node = divmod(vertex, len(self._array))
        coefficients = self._array[node]
        index = coefficients.nonzero()[0]
        return at * self._array.shape[1] + index, coefficients[index]

    def toward(self, answer: Tensor, against: Tensor) -> Tensor:
        return self._maps(self.weight[answer] - self.weight[against])

    def row(self, b: int) -> Matrix:
        return self


class Sum:
    """Channel by channel, weight [n]: what a reader of the residual stream takes from one writer.

    at      [B] where the reader reads one position of each input only; sums are then [B, n]
    length  how many positions there are to read from, where `at` is given
    """

    def __init__(
        self, name: str, src: str, dst: str, weight: Tensor, at: Tensor | None = None, length: int = 0
    ) -> None:
        self.name, self.src, self.dst, self.weight, self.at, self.length = name, src, dst, weight, at, length

    def _read(self, h: Tensor) -> Tensor:
        return h if self.at is None else h[torch.arange(len(h)), self.at.expand(len(h))]

    def __call__(self, h: Tensor) -> Tensor:
        return self._read(h) * self.weight

    def back(self, g: Tensor) -> Tensor:
        g = g * self.weight
        if self.at is None:
            return g
        out = g.new_zeros(len(g), self.length, g.shape[-1])
        out[torch.arange(len(g)), self.at.expand(len(g))] = g
        return out

    def edges(self, g: Tensor, h: Tensor) -> Tensor:
        out = g * self(h)
        return out.sum(1) if out.dim() == 3 else out

    def strongest(self, m: Tensor) -> Tensor:
        return self(m).abs()

    def count(self, n: Tensor) -> Tensor:
        return self._read(n) * (self.weight != 0)

    def feed(self, vertex: int) -> Feed:
        n = len(self.weight)
        coefficient = float(self.weight[vertex % n])
        start = 0 if self.at is None else int(self.at[0]) * n
        index = np.array([start + vertex] if coefficient else [], dtype=np.int64)
        return index, np.full(len(index), coefficient)

    def toward(self, answer: Tensor, against: Tensor) -> Tensor:
        out = torch.zeros(len(answer), len(self.weight), dtype=self.weight.dtype)
        rows = torch.arange(len(answer))
        out.index_put_((rows, answer), self.weight[answer], accumulate=True)
        return out.index_put_((rows, against), -self.weight[against], accumulate=True)

    def row(self, b: int) -> Sum:
        at = None if self.at is None else self.at[b : b + 1]
        return Sum(self.name, self.src, self.dst, self.weight, at, self.length)


class Mix:
    """Attention before a matrix: values averaged over positions with weights [B, H, T, T], then `after` [dst, src].

    Source nodes stand head by head, src / H each.
    """

    def __init__(self, after: Matrix, pattern: Tensor) -> None:
        self.name, self.src, self.dst, self.after, self.pattern = after.name, after.src, after.dst, after, pattern
        self.heads = pattern.shape[1]

    def mixed(self, h: Tensor) -> Tensor:
        """The averages [B, T, src]."""
        y = self.pattern @ h.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return y.transpose(1, 2).flatten(-2)

    def __call__(self, h: Tensor) -> Tensor:
        return self.after(self.mixed(h))

    def back(self, g: Tensor) -> Tensor:
        y = self.pattern.mT @ self.after.back(g).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return y.transpose(1, 2).flatten(-2)

    def edges(self, g: Tensor, h: Tensor) -> Tensor:
        return self.after.edges(g, self.mixed(h))

    def strongest(self, m: Tensor) -> Tensor:
        width = m.shape[-1] // self.heads
        out = torch.zeros_like(m)
        for some in self.after.columns.split(max(1, ROOM // m.shape[1] ** 2)):
            weights = self.pattern[0, some // width]  # [some, T, T]
            out[0, :, some] = (weights * m[0][:, some].T[:, None, :]).amax(-1).T
        return self.after.strongest(out)

    def count(self, n: Tensor) -> Tensor:
        plain = (self.pattern != 0).double() @ n.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.after.count(plain.transpose(1, 2).flatten(-2))

    def feed(self, vertex: int) -> Feed:
        weight = self.after.weight
        size, n = weight.shape
        at, node = divmod(vertex, size)
        index = weight[node].nonzero().flatten()
        weights = self.pattern[0, index // (n // self.heads), at, : at + 1]  # [sources, positions]
        coefficients = weight[node, index][:, None] * weights
        vertices = torch.arange(at + 1)[None, :] * n + index[:, None]
        return vertices.flatten().numpy(), coefficients.flatten().numpy()

    def toward(self, answer: Tensor, against: Tensor) -> Tensor:
        raise AssertionError("attention does not end in the answers")

    def row(self, b: int) -> Mix:
        return Mix(self.after, self.pattern[b : b + 1])


class Kernels:
    """A convolution without padding, weight [dst, src, height, width]; sums are maps [dst, H, W] before any pooling."""

    def __init__(self, name: str, src: str, dst: str, weight: Tensor, stride: int, side: tuple[int, int]) -> None:
        self.name, self.src, self.dst, self.weight, self.stride, self.side = name, src, dst, weight, stride, side
        self.out = tuple((n - k) // stride + 1 for n, k in zip(side, weight.shape[2:], strict=True))

    def __call__(self, h: Tensor) -> Tensor:
        return F.conv2d(h, self.weight, None, self.stride)

    def back(self, g: Tensor) -> Tensor:
        size = (len(g), self.weight.shape[1], *self.side)
        return conv2d_input(size, self.weight, g, self.stride)

    def edges(self, g: Tensor, h: Tensor) -> Tensor:
        of = conv2d_weight
        shape = tuple(self.weight.shape)
        taps = torch.stack([of(h[b : b + 1], shape, g[b : b + 1], self.stride) for b in range(len(g))])
        return (taps * self.weight).sum((-1, -2))

    def _windows(self, x: Tensor) -> Tensor:
        """[positions, src * height * width] of maps [1, src, H, W]."""
        return F.unfold(x, tuple(self.weight.shape[2:]), stride=self.stride)[0].T

    def strongest(self, m: Tensor) -> Tensor:
        return largest(self.weight.flatten(1).abs(), self._windows(m)).T.unflatten(-1, self.out)[None]

    def count(self, n: Tensor) -> Tensor:
        return F.conv2d(n, (self.weight != 0).double(), None, self.stride)

    def feed(self, vertex: int) -> Feed:
        node, at = divmod(vertex, self.out[0] * self.out[1])
        y, x = (self.stride * i for i in divmod(at, self.out[1]))
        src, dy, dx = self.weight[node].nonzero(as_tuple=True)
        vertices = (src * self.side[0] + y + dy) * self.side[1] + x + dx
        return vertices.numpy(), self.weight[node][src, dy, dx].numpy()

    def toward(self, answer: Tensor, against: Tensor) -> Tensor:
        raise AssertionError("what reads a whole map to tell the answers is a Matrix")

    def row(self, b: int) -> Kernels:
        return self


def largest(weight: Tensor, m: Tensor) -> Tensor:
    """max over src of weight [dst, src] * m [.., src], both at least 0: [.., dst]; in parts that fit into memory."""
    if not weight.numel():
        return m.new_zeros(*m.shape[:-1], len(weight))
    flat = m.reshape(-1, m.shape[-1])
    step = max(1, ROOM // max(1, weight.numel()))
    parts = [(weight[None] * part[:, None, :]).amax(-1) for part in flat.split(step)]
    return torch.cat(parts).reshape(*m.shape[:-1], len(weight))


__all__ = ["Feed", "Kernels", "Map", "Matrix", "Mix", "Sum"]
