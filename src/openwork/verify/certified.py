"""Certified: the circuit decides what the model decides, not only on the examples but on every input near them.

Every other check runs the circuit on examples. Here the claim is proved for all inputs z with |z - x| <= radius in
every feature, clipped to the data's range: bounds on both networks over the whole box show that no z parts them (see
`bounds`). What a proof leaves open, an attack tries to close from the other side (projected gradient descent, Madry et
al. 2018, arXiv 1706.06083), so for the examples at hand

    share proved  <=  share that is true  <=  1 - share for which a counterexample was found.

Knows a Question. It applies to ReLU perceptrons of vectors; for any other model there is no such evidence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from openwork import patching, stats
from openwork.circuit import FAILS, HOLDS, UNDECIDED, Evidence, Masks
from openwork.errors import UsageError
from openwork.models.folded import folded_masks, plain_perceptron
from openwork.tasks.task import Split
from openwork.verify.bounds import Box, Network, beaten, decide_alike, network
from openwork.verify.question import ALPHA, Question, chance_accuracy, clusters, random_circuits

RADII = (0.01, 0.02, 0.05)  # shares of the data's range
RADIUS = 0.02  # about 5 of 255 grey levels, between the 2 and the 8 that images are usually attacked with
STEPS = 20
ROOM = 4_000_000  # numbers in the largest tensor of bounds


def refusal(model: nn.Module) -> str:
    """Why no certificate can be given for a model, as the end of a sentence; "" where one can."""
    if why := plain_perceptron(model):
        return why
    activation = model.config.activation  # type: ignore[union-attr]
    return "" if activation == "relu" else f"its activation is {activation}, and the bounds are for relu"


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known of N examples at one radius; every field bool [N].

    proved  both decide, at every z of the box, what the model decides at x
    parted  a z was found at which they decide differently: the claim is false there
    moved   a z was found at which one of the two does not decide what the model decides at x: `parted`, or a place
            where the model turns, around which no margin can prove that the circuit turns with it (see
            `bounds.decide_alike`)
    """

    radius: float
    proved: Tensor
    parted: Tensor
    moved: Tensor


def data_range(split: Split) -> tuple[float, float]:
    """The least and the greatest value of any feature in a split of vectors."""
    x = split.inputs[0]
    return float(x.min()), float(x.max())


def ball(x: Tensor, radius: float, limits: tuple[float, float]) -> Box:
    """The box of all z within `radius` of x [N, F] in every feature and within the limits; x itself is in it.

    Its corners are float32 numbers, so a network that runs in float32 can be asked about each of them.
    """
    x = x.float()
    low, high = (x - radius).clamp(min=limits[0]), (x + radius).clamp(max=limits[1])
    return torch.minimum(low, x).double(), torch.maximum(high, x).double()


def certify(q: Question, radii: Sequence[float] = RADII) -> tuple[Certificate, ...]:
    """Certificates of the circuit on the verify split, one per radius (shares of the data's range, 0 to 1), ascending.

    Boxes of one example lie within each other: what is proved for one holds for the smaller ones, a counterexample in
    one lies in the larger ones. Raises UsageError for a model that the bounds do not cover, and for radii that are no
    shares.
    """
    if why := refusal(q.model):
        raise UsageError(f"no certificate can be given for this model: {why}.")
    if not radii or any(not 0 <= r <= 1 for r in radii):
        raise UsageError(f"radii are {list(radii)}; give at least one, each a share of the data's range from 0 to 1.")
    masks = patching.masks_of(q.model, q.circuit)
    nets, choices, out = (_network(q), _network(q, *masks)), _choices(q.verify), []
    for radius in sorted(set(radii)):
        boxes = _boxes(q, radius)
        model, circuit = (_beaten(net, boxes, choices) for net in nets)
        parted, moved = _attack(q, masks, nets, boxes, choices)
        out.append(Certificate(radius, decide_alike(model, circuit), parted, moved))
    for near, far in zip(range(len(out) - 1), range(1, len(out)), strict=True):
        out[far] = replace(out[far], parted=out[far].parted | out[near].parted, moved=out[far].moved | out[near].moved)
    for near in reversed(range(len(out) - 1)):
        out[near] = replace(out[near], proved=out[near].proved | out[near + 1].proved)
    assert not any(bool((c.proved & c.moved).any()) for c in out), "a counterexample to what was proved"
    return tuple(out)


# -- bounds ----------------------------------------------------------------------------------------------------------


def _network(q: Question, nodes: Masks | None = None, edges: Masks | None = None) -> Network:
    """The model under these masks, ready to be bounded."""
    links = q.circuit.graph.links
    reference = [q.fixed.get(e.src, torch.zeros(e.shape[1])).detach().double().cpu() for e in links]
    whole = folded_masks(q.model, {}, {}, q.fixed)
    return network(folded_masks(q.model, nodes or {}, edges or {}, q.fixed), whole, reference)


def _boxes(q: Question, radius: float, split: Split | None = None) -> Box:
    """The box of every example (of the verify split), within the verify split's range; `radius` is a share of it."""
    low, high = data_range(q.verify)
    return ball((split or q.verify).inputs[0].cpu(), radius * (high - low), (low, high))


def _choices(split: Split) -> Tensor:
    """The answers of every example as output indices [N, A], the right one last, so that it loses a tie."""
    return torch.cat([split.wrong, split.answer[:, None]], 1).cpu()


def _decided(logits: Tensor, choices: Tensor) -> Tensor:
    """Which answer has the largest logit: its place among the choices [N, A], for logits [N, V]."""
    return logits.gather(1, choices).argmax(1)


def _logits(net: Network, z: Tensor) -> Tensor:
    """The folded network as it is, in float64: logits [N, V] of z [N, F]."""
    for w, b in net.layers[:-1]:
        z = (z @ w.T + b).clamp(min=0)
    w, b = net.layers[-1]
    return z @ w.T + b


def _beaten(net: Network, boxes: Box, choices: Tensor) -> Tensor:
    """`bounds.beaten` [N, A], some examples at a time so that no tensor grows beyond ROOM numbers."""
    rows = max(choices.shape[1] ** 2, *(len(b) for _, b in net.layers))
    size = max(1, ROOM // (rows * max(1, *(w.shape[1] for w, _ in net.layers))))
    parts = torch.arange(len(choices)).split(size)
    return torch.cat([beaten(net, (boxes[0][part], boxes[1][part]), choices[part]) for part in parts])


# -- counterexamples -------------------------------------------------------------------------------------------------


def _attack(
    q: Question, masks: tuple[Masks, Masks], nets: tuple[Network, Network], boxes: Box, choices: Tensor
) -> tuple[Tensor, Tensor]:
    """For which examples a z in the box was found that parts the two, or moves one of them: two bool [N].

    Signed gradient steps from x and from a random corner, down each of four slopes: either network's margin of what
    the model decides at x, and either difference of the two. What they find counts only if the model and its patched
    run, in float32, decide so.
    """
    low, high = boxes
    n, x = len(choices), q.verify.inputs[0].double().cpu()
    at = _decided(_logits(nets[0], x), choices)
    rng = q.rng("certified attack")
    corner = torch.where(torch.from_numpy(rng.random(tuple(low.shape))) < 0.5, low, high)
    parted, moved = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    slopes = ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0), (-1.0, 1.0))
    real = _real_decision(q, x, choices)
    for start in (x, corner):
        for first, second in slopes:
            z = start.clone()
            for step in range(STEPS + 1):
                z.requires_grad_(True)
                logits = [_logits(net, z) for net in nets]
                model, circuit = (_decided(out.detach(), choices) for out in logits)
                fresh = ((model != circuit) & ~parted) | (((model != at) | (circuit != at)) & ~moved)
                if bool(fresh.any()):
                    who = fresh.nonzero().flatten()
                    seen = _real_decision(q, z.detach()[who], choices[who])
                    patched = _real_decision(q, z.detach()[who], choices[who], masks)
                    parted[who] |= seen != patched
                    moved[who] |= (seen != real[who]) | (patched != real[who])
                if step == STEPS or bool(parted.all()):
                    break
                margin = [_margin(out, choices, at) for out in logits]
                (slope,) = torch.autograd.grad((first * margin[0] + second * margin[1]).sum(), z)
                with torch.no_grad():
                    z = z - (high - low) * 1.25 / STEPS * slope.sign()
                    z = torch.minimum(torch.maximum(z, low), high).float().double()
    return parted, moved


def _margin(logits: Tensor, choices: Tensor, at: Tensor) -> Tensor:
    """Logit of the answer at place `at` above the best other one, [N]."""
    c = logits.gather(1, choices)
    mine = torch.nn.functional.one_hot(at, c.shape[1]).bool()
    return c[mine] - c.masked_fill(mine, -torch.inf).amax(1)


def _real_decision(q: Question, z: Tensor, choices: Tensor, masks: tuple[Masks, Masks] = ({}, {})) -> Tensor:
    """What the model, or its patched run, decides in float32: places [N] among the choices."""
    device = next(q.model.parameters()).device
    with torch.no_grad(), patching.patched(q.model, q.fixed, *masks):
        return _decided(q.model(z.float().to(device)).cpu(), choices)


# -- the claim -------------------------------------------------------------------------------------------------------


def certified(q: Question, radii: Sequence[float] = RADII, radius: float = RADIUS) -> Evidence | None:
    """The share of held-out examples around which both are proved to decide alike; None where there are no bounds.

    radii            shares of the data's range whose figures stand in the details; `radius` is the one that decides
    value            share certified at `radius` (Wilson interval, counting every pair once)
    bar              midway between all and 1 / number of answers: a circuit that always says the same agrees with a
                     steady model about that often
    holds            the share reaches the bar, and p <= 0.05
    fails            counterexamples were found for a share whose interval lies wholly above what the bar leaves over
    too little data  fewer than 32 examples; or neither: what is merely unproved is never called false
    null             circuits of as many random live nodes at every site, certified on the fixed sample at the same
                     radius; p is the rank of the circuit's share among theirs
    """
    if refusal(q.model) or isinstance(q.reference, str):  # bounds are of one network, not of one per example
        return None
    started = time.perf_counter()
    curve = {c.radius: c for c in certify(q, (*radii, radius))}
    here, n, groups = curve[radius], len(q.verify), len(np.unique(clusters(q.verify)))
    share, parted, unproved = _share(here.proved), _share(here.parted), _share(~(here.proved | here.parted))
    interval, attacked = stats.wilson(share * groups, groups), stats.wilson(parted * groups, groups)
    own, null = _shares_of_random(q, radius)
    p = stats.rank_p(own, null, "greater")
    bar = (1 + chance_accuracy(q.verify)) / 2
    verdict = UNDECIDED
    if not q.small and share >= bar and p <= ALPHA:
        verdict = HOLDS
    elif not q.small and attacked[0] > 1 - bar:
        verdict = FAILS
    sentence = (
        f"Around {share:.0%} of {n} held-out examples, model and circuit provably decide alike on every input within "
        f"{radius:g} of the data's range (95 % {interval[0]:.0%} to {interval[1]:.0%}, bar {bar:.0%}); around "
        f"{parted:.0%} an input was found on which they differ, {unproved:.0%} are open. Of {q.n_null} random circuits "
        f"of equal size it is {null.mean():.0%} on average and {null.max():.0%} at best."
    )
    return Evidence(
        claim="certified",
        verdict=verdict,
        sentence=sentence,
        value=share,
        unit="share of examples",
        interval=interval,
        null=f"{q.n_null} circuits of as many random live nodes at every site",
        null_value=float(null.mean()),
        p=p,
        n=n,
        split=q.verify.name,
        seed=q.seed,
        seconds=time.perf_counter() - started,
        details={
            "radius": radius,
            "data_range": list(data_range(q.verify)),
            "bar": bar,
            "attacked_interval": list(attacked),
            "null_draws": q.n_null,
            "null_best": float(null.max()),
            "sample": len(q.sample),
            "share_on_sample": own,
            "curve": [
                {
                    "radius": c.radius,
                    "proved": _share(c.proved),
                    "parted": _share(c.parted),
                    "moved": _share(c.moved),
                }
                for c in curve.values()
            ],
        },
    )


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _shares_of_random(q: Question, radius: float) -> tuple[float, np.ndarray]:
    """The share of the sample on which the circuit, and each random one, is proved to decide as the model does."""
    boxes, choices = _boxes(q, radius, q.sample), _choices(q.sample)
    model = _beaten(_network(q), boxes, choices)

    def share(nodes: Masks, edges: Masks) -> float:
        return _share(decide_alike(model, _beaten(_network(q, nodes, edges), boxes, choices)))

    own = share(*patching.masks_of(q.model, q.circuit))
    rivals = random_circuits(q, q.rng("certified"))
    return own, np.array([share({n: m for n, m in nodes.items() if not bool(m.all())}, {}) for nodes in rivals])
