"""A model of one's own: two branches that look at different halves of an image, and a head that joins them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import openwork as ow


class TwoBranches(nn.Module):
    """Images [B, 64] to logits [B, 10]; the nn.Identity modules are the places where nodes can be pointed at."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = nn.Linear(32, 12), nn.Linear(32, 12)
        self.top, self.bottom, self.left, self.right = (nn.Identity() for _ in range(4))
        self.from_left, self.from_right = nn.Linear(12, 10), nn.Linear(12, 10, bias=False)
        self.logits = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self.top(x[:, :32]), self.bottom(x[:, 32:])
        left, right = self.left(F.relu(self.upper(top))), self.right(F.relu(self.lower(bottom)))
        return self.logits(self.from_left(left) + self.from_right(right))

    def graph(self) -> ow.Graph:
        """Sites are groups of nodes (module: whose output they send), links the matrices between them."""
        return ow.Graph(
            sites=(
                ow.Site("top", 32, "top", "input", 0),
                ow.Site("bottom", 32, "bottom", "input", 0),
                ow.Site("left", 12, "left", "neuron", 1),
                ow.Site("right", 12, "right", "neuron", 1),
                ow.Site("logits", 10, "logits", "output", 2, prunable=False),
            ),
            links=(
                ow.Link("top>left", "top", "left", "upper", (12, 32)),
                ow.Link("bottom>right", "bottom", "right", "lower", (12, 32)),
                ow.Link("left>logits", "left", "logits", "from_left", (10, 12)),
                ow.Link("right>logits", "right", "logits", "from_right", (10, 12)),
            ),
        )


def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def model() -> nn.Module:
    """The trained model: the same weights at every call. A larger one would load them from a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TwoBranches()
    x, y = (t[:1000] for t in _digits())
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        adam.zero_grad()
        (F.cross_entropy(net(x), y) + 2e-4 * sum(p.abs().sum() for p in net.parameters())).backward()
        adam.step()
    return net


def four_or_nine() -> ow.Task:
    """Is it a 4 or a 9? Four disjoint splits of the images that the model was not trained on."""
    x, y = (t[1000:] for t in _digits())
    keep = (y == 4) | (y == 9)
    x, y = x[keep], y[keep]
    splits = {}
    for i, name in enumerate(("discover", "verify", "ood", "explain")):
        mine, answer = x[i::4], y[i::4]
        alone = torch.full_like(answer, -1)  # no counterparts
        texts = tuple(f"a {digit}" for digit in answer.tolist())
        splits[name] = ow.Split(name, (mine,), answer, (13 - answer)[:, None], alone, texts)
    return ow.Task("four_or_nine", "is it a 4 or a 9?", splits, ("4", "9"))
