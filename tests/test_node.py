"""AbsTopK: of every token or image exactly the largest nodes stay, and only they learn."""

from __future__ import annotations

import pytest
import torch

from openwork.models.node import Node, largest_in_rows, share_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3, 9, 10, 12])
def test_the_k_largest_of_every_row_stay(k: int, dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, 10, generator=torch.Generator().manual_seed(k)).to(dtype)
    want = torch.zeros_like(x)
    for row, out in zip(x.view(-1, 10), want.view(-1, 10), strict=True):
        for i in sorted(range(10), key=lambda i: -abs(float(row[i])))[:k]:
            out[i] = row[i]
    assert torch.equal(Node(k)(x), want)
    transposed = x.transpose(0, 1)  # not contiguous
    assert torch.equal(Node(k)(transposed), want.transpose(0, 1))


def test_of_an_image_whole_channels_stay() -> None:
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0], x[0, 1], x[0, 2, 1, 1] = 5.0, -1.5, 1.0  # sums of sizes 5, 6, 1
    out = Node(2, maps=True)(x)
    assert torch.equal(out[0, :2], x[0, :2]) and not out[0, 2].any()
    assert torch.equal(Node(2, maps=True)(x.view(1, 12)), Node(2)(x.view(1, 12)))  # no maps left: nodes are numbers


def test_only_what_stays_has_a_gradient() -> None:
    x = torch.tensor([[3.0, -2.0, 1.0]], requires_grad=True)
    Node(2)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0, 0.0]]


def test_equals_all_stay_on_a_cpu() -> None:
    assert largest_in_rows(torch.tensor([[1.0, -1.0, 0.5]]), 1).tolist() == [[True, True, False]]
    assert largest_in_rows(torch.tensor([[0.0, -0.0, 2.0]]), 2).all()


def test_a_share_is_at_least_one_node() -> None:
    assert (share_of(10, 1.0), share_of(10, 0.25), share_of(10, 0.01)) == (None, 2, 1)
