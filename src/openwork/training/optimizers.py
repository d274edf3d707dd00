"""The optimizers by name. A new one is a function here and one line in OPTIMIZERS.

Weight decay falls on matrices only (two axes or more), never on biases and gains. What a regime has added to the model
(`Regime.groups`) is in groups of its own and follows their rules. Muon and LMO-IGT treat hidden
matrices apart from the rest: the two-axis weights of links that neither leave an input nor enter the output, as the
model's graph says. Their steps are scaled to a root mean square of 0.2 lr per entry, about that of Adam (Liu et al.
2025, arXiv 2502.16982), so that one learning rate serves all parameters.

An optimizer that wants its gradient elsewhere than at the parameters offers `ahead()`, a context that moves them there
and back; `gradient_point` is how the loop asks. Outside of it the parameters are what is evaluated, masked and stored.

Knows parameters and the graph's links. Does not know losses, regimes or data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from openwork.errors import UsageError
from openwork.patching import graph_of

if TYPE_CHECKING:
    from openwork.training.loop import TrainSettings

STEP_RMS = 0.2  # of an entry's step, in units of lr
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, kellerjordan.github.io/posts/muon


Groups = Sequence[dict[str, Any]]  # as torch's optimizers take them: "params" and their settings


class MakeOptimizer(Protocol):
    """An optimizer for a model's trainable parameters; `own` are the groups of the regimes."""

    def __call__(self, model: nn.Module, settings: TrainSettings, own: Groups = ()) -> Optimizer: ...


def parameter_groups(
    model: nn.Module, weight_decay: float, own: Groups = (), without: Collection[Tensor] = ()
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, matrices with weight decay and everything else without, and the own ones."""
    out = {id(p) for p in (*without, *(p for group in own for p in group["params"]))}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in out]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        *own,
    ]


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The two-axis weights between hidden sites, in the graph's order.

    UsageError for a model without a graph, and for a weight that is not one parameter but made of several.
    """
    graph = graph_of(model)
    found: dict[int, nn.Parameter] = {}
    for link in graph.links:
        if link.kind != "weight" or graph.site(link.src).kind == "input" or graph.site(link.dst).kind == "output":
            continue
        module = model.get_submodule(link.module)
        weight = module.weight
        if parametrize.is_parametrized(module, "weight"):
            weight = getattr(cast(nn.ModuleDict, module.parametrizations)["weight"], "original", None)
            if weight is None:
                raise UsageError(
                    f"{link.module}.weight is computed from several parameters (weight_norm): muon and lmo_igt need "
                    "whole matrices; use adamw or sgd."
                )
        if isinstance(weight, nn.Parameter) and weight.requires_grad and weight.dim() == 2:
            found[id(weight)] = weight
    return list(found.values())


def gradient_point(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Around the forward and backward pass: the parameters are where the optimizer wants its gradient."""
    ahead = getattr(optimizer, "ahead", None)
    return ahead() if ahead is not None else nullcontext()


# -- from torch --------------------------------------------------------------------------------------------------------


def adamw(model: nn.Module, settings: TrainSettings, own: Groups = ()) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused: on a CPU 2 to 6 times faster than not."""
    groups = parameter_groups(model, settings.weight_decay, own)
    return torch.optim.AdamW(groups, settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def sgd(model: nn.Module, settings: TrainSettings, own: Groups = ()) -> Optimizer:
    """Stochastic gradient descent; betas[0] is its momentum. Its weight decay goes through the gradient."""
    groups = parameter_groups(model, settings.weight_decay, own)
    return torch.optim.SGD(groups, settings.lr, momentum=settings.betas[0], fused=True)


def muon(model: nn.Module, settings: TrainSettings, own: Groups = ()) -> Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, betas[0] its momentum, and AdamW for everything else.

    Every weight of a matrix moves at every step, also where its gradient is zero: masks must be applied after the
    step, as top-k and RigL do.
    """
    hidden = hidden_matrices(model)
    if not hidden:
        raise UsageError(f"muon: this {type(model).__name__} has no matrix between two hidden layers; use adamw.")
    first = torch.optim.Muon(
        hidden, settings.lr, settings.weight_decay, momentum=settings.betas[0], adjust_lr_fn="match_rms_adamw"
    )
    groups = parameter_groups(model, settings.weight_decay, own, hidden)
    return Together(first, torch.optim.AdamW(groups, settings.lr, betas=settings.betas, eps=settings.eps, fused=True))


class Together(Optimizer):
    """Several optimizers of different parameters as one: they step in turn, and share groups and state with it."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        self._lengths = [len(p.param_groups) for p in parts]
        super().__init__([g for p in parts for g in p.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part, n in zip(self.parts, self._lengths, strict=True):
            part.param_groups = [next(groups) for _ in range(n)]
            part.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; what is loaded is shared with the parts again."""
        super().load_state_dict(state_dict)
        self._share()


# -- LMO-IGT -----------------------------------------------------------------------------------------------------------


def lmo_igt(model: nn.Module, settings: TrainSettings, own: Groups = ()) -> Optimizer:
    """Implicit gradient transport with spectral steps for hidden matrices and sign steps for the rest, see `LmoIgt`."""
    hidden = hidden_matrices(model)
    groups = [
        {"params": hidden, "weight_decay": settings.weight_decay, "spectral": True},
        *({**g, "spectral": False} for g in parameter_groups(model, settings.weight_decay, own, hidden)),
    ]
    return LmoIgt(groups, settings.lr, settings.betas[0])


class LmoIgt(Optimizer):
    """Steps over a norm ball, with the gradient taken at an extrapolated point (one gradient per step).

        y_t     = x_t + b / (1 - b) (x_t - x_{t-1})
        m_t     = b m_{t-1} + (1 - b) grad f(y_t),    m_0 = grad f(x_0)
        x_{t+1} = (1 - lr wd) x_t - lr s(m_t)

    s is 0.2 sqrt(max(rows, columns)) U V^T of the singular vectors of m (ball of the spectral norm), or 0.2 sign(m)
    (ball of the largest entry). On a quadratic, m_t is the gradient at x_t exactly: that is what the extrapolation
    is for. Between steps the parameters are x_t; `ahead` moves them to y_t.

    The idea is that of Jang and Lee (arXiv 2605.05577), with one gradient per step; the update is the one of its
    siblings (Cutkosky and Mehta 2020, arXiv 2002.03305), whose start at the first gradient is taken. Whether the paper
    scales its balls as here is not known to us.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise UsageError(
                f"lmo_igt looks b / (1 - b) steps ahead: its momentum betas[0] = {momentum} must be below 1."
            )
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "spectral": False})

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Within the context the parameters are y_t; after it they are x_t again, bit for bit."""
        moved: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for group in self.param_groups:
                far = group["momentum"] / (1 - group["momentum"])
                for p in group["params"]:
                    before = self.state.get(p, {}).get("before")
                    if before is not None:
                        now = p.clone()
                        p.add_(now - before, alpha=far)
                        before.copy_(now)  # x_t: what this step ends on again, and what the next looks back on
                        moved.append((p, before))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, now in moved:
                    p.copy_(now)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step from x_t with the gradient that was taken at y_t."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum"], state["before"] = p.grad.clone(), p.clone()
                else:
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                m = state["momentum"]
                way = orthogonal(m) * max(m.shape) ** 0.5 if group["spectral"] else m.sign()
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(way, alpha=group["lr"] * STEP_RMS)


def orthogonal(m: Tensor, rounds: int = 5) -> Tensor:
    """About U V^T of m = U S V^T, [rows, columns]: singular values near 1 instead of S (Newton-Schulz, quintic)."""
    a, b, c = NEWTON_SCHULZ
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if m.shape[0] > m.shape[1] else x


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adamw": adamw,
    "sgd": sgd,
    "muon": muon,
    "lmo_igt": lmo_igt,
}
