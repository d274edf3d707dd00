"""How many examples does a claim need? Planted networks whose answer is known, checked again and again.

    python benchmarks/power.py [--worlds 100]

Writes docs/results/power.md, and prints the same figures as JSON. In every world a perceptron is written by hand, so
that it is known how large the effect is and which verdict is right; examples are drawn anew, the check is run, and its
verdict counted. Everything comes from the number of the world.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quotes import table
from torch import Tensor

from openwork import patching
from openwork.circuit import FAILS, HOLDS, Circuit
from openwork.files import write_text
from openwork.models import MLP, MLPConfig
from openwork.tasks.task import Split
from openwork.verify import VERIFIERS, Question

PAGE = Path(__file__).parents[1] / "docs" / "results" / "power.md"
PAIRS = (16, 32, 64, 128, 256, 512)
TARGET = 0.15  # nats, that of the published searches
SURE = 0.9  # share of the worlds that are to be decided rightly
CANCELLING = 12  # pairs of neurons that cancel each other, in the worlds of the adversary


def main() -> None:
    """Simulates, writes the page, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {claim: simulate(claim, *STUDIES[claim][2:], asked.worlds) for claim in STUDIES}
    write_text(PAGE, page(found, asked.worlds))
    print(json.dumps(found, indent=1))
    print(PAGE)


# -- worlds ------------------------------------------------------------------------------------------------------------


def network(backup: float = 0.0, override: float = 0.0, shift: float = 0.0) -> tuple[MLP, Circuit]:
    """A perceptron that answers by the sign of x0, and the circuit that does so.

    backup    weight of a second way, by the sign of x1
    override  weight of a third, by the sign of x2
    shift     what each of 12 constant neurons adds to one logit, and 12 others take away again
    The other neurons add the same to both logits.
    """
    ways, k = ((0, 4.0), (1, backup), (2, override)), CANCELLING
    model = MLP(MLPConfig(inputs=24, hidden=(24 + 2 * k,), outputs=2))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        first, last = (layer.weight for layer in model.layers)
        for i, (column, weight) in enumerate(ways):
            first[2 * i, column], first[2 * i + 1, column] = 1.0, -1.0
            last[0, 2 * i], last[1, 2 * i + 1] = weight, weight
        first[6:24, 3:] = torch.randn(18, 21, generator=g)
        last[:, 6:24] = torch.randn(1, 18, generator=g) / 10
        if shift:
            first[24:, 3], model.layers[0].bias[24:] = 1e-4, 1.0  # type: ignore[index]
            last[0, 24 : 24 + k], last[0, 24 + k :] = shift, -shift
    nodes = {"input": torch.arange(24) == 0, "hidden0": torch.arange(24 + 2 * k) < 2}
    return model, Circuit.from_nodes(model.graph(), nodes, patching.support(model))


def draw(name: str, pairs: int, g: torch.Generator, size: Tensor | None = None) -> Split:
    """Pairs of examples that differ in the sign of x0, `size` [pairs] of it (default: between 1 and 2)."""
    x = torch.randn(2 * pairs, 24, generator=g)
    x[:, 1:3] = 0
    x[1::2] = x[::2]
    x[::2, 0] = 1 + torch.rand(pairs, generator=g) if size is None else size
    x[1::2, 0] = -x[::2, 0]
    answer = torch.arange(2 * pairs) % 2
    return Split(name, (x,), answer, (1 - answer)[:, None], torch.arange(2 * pairs) ^ 1, ("",) * (2 * pairs))


def some(pairs: int, share: float, g: torch.Generator) -> Tensor:
    """Which examples [2 * pairs]: every pair by chance, both of it."""
    return (torch.rand(pairs, generator=g) < share).repeat_interleave(2)


def away(split: Split, column: int, which: Tensor, right: bool, size: float) -> None:
    """Lets a column speak for the right answer (or against it) on some examples."""
    sign = (1.0 - 2.0 * split.answer) * (1 if right else -1)
    split.inputs[0][which, column] = (size * sign)[which]


@cache
def scale_of(loss: float) -> float:
    """The spread of x0, normally distributed in size, at which the circuit's mean loss is so many nats."""
    z = np.abs(np.random.default_rng(0).normal(0, 1, 200_000))
    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if np.log1p(np.exp(-4 * middle * z)).mean() > loss else (low, middle)
    return low


def sufficient(ratio: float, pairs: int, g: torch.Generator) -> Question:
    """A circuit whose true loss is `ratio` times the target."""
    model, circuit = network()
    size = torch.randn(pairs, generator=g).abs() * scale_of(ratio * TARGET)
    return ask(model, circuit, draw("verify", pairs, g, size))


def necessary(left: float, pairs: int, g: torch.Generator) -> Question:
    """A second way answers `left` of the examples rightly when the circuit is gone."""
    model, circuit = network(backup=1.0)
    split = draw("verify", pairs, g)
    good = some(pairs, left, g)
    away(split, 1, good, True, 0.5)
    away(split, 1, ~good, False, 0.5)
    return ask(model, circuit, split)


def generalises(lost: float, pairs: int, g: torch.Generator) -> Question:
    """Out of distribution, `lost` of the examples are answered by a way outside the circuit, and only there rightly."""
    model, circuit = network(override=4.0)
    ood = draw("ood", pairs, g)
    which = some(pairs, lost, g)
    ood.inputs[0][which, 0] *= -1
    away(ood, 2, which, True, 4.0)
    return ask(model, circuit, draw("verify", pairs, g), ood)


def agrees_on_mistakes(alike: float, pairs: int, g: torch.Generator) -> Question:
    """The model errs on a fifth of the pairs; on `alike` of them because of the circuit, on the rest outside of it."""
    model, circuit = network(override=4.0)
    split = draw("verify", pairs, g)
    wrong, inside = some(pairs, 0.2, g), some(pairs, alike, g)
    split.inputs[0][wrong & inside, 0] *= -1
    away(split, 2, wrong & ~inside, False, 4.0)
    return ask(model, circuit, split)


def adversarial(shift: float, pairs: int, g: torch.Generator) -> Question:
    """The adversary can add 12 times `shift` to one logit."""
    model, circuit = network(shift=shift)
    return ask(model, circuit, draw("verify", pairs, g))


def ask(model: MLP, circuit: Circuit, verify: Split, ood: Split | None = None) -> Question:
    """The question of a world."""
    return Question(model, circuit, patching.zero_reference(model), verify, ood, TARGET, n_null=19)


World = Callable[[float, int, torch.Generator], Question]

# claim -> what its effect is, its bar in words, how to make a world, effects with the right verdict, numbers of pairs
STUDIES: dict[str, tuple[str, str, World, Mapping[float, str], Sequence[int]]] = {
    "sufficient": (
        "true loss by target", "1", sufficient,
        {0.5: HOLDS, 0.67: HOLDS, 0.8: HOLDS, 0.9: HOLDS, 1.1: FAILS, 1.25: FAILS, 1.5: FAILS, 2.0: FAILS}, PAIRS,
    ),
    "necessary": (
        "accuracy left without the circuit", "0.75", necessary,
        {0.5: HOLDS, 0.6: HOLDS, 0.7: HOLDS, 0.8: FAILS, 0.9: FAILS}, PAIRS,
    ),
    "generalises": (
        "accuracy lost out of distribution", "0.05", generalises,
        {0.0: HOLDS, 0.02: HOLDS, 0.1: FAILS, 0.2: FAILS, 0.3: FAILS}, PAIRS,
    ),
    "agrees_on_mistakes": (
        "share of mistakes made alike", "0.5", agrees_on_mistakes,
        {0.1: FAILS, 0.3: FAILS, 0.7: HOLDS, 0.9: HOLDS}, PAIRS,
    ),
    "adversarial": (
        "logits that the adversary can add, each of 12", "a loss of 0.3", adversarial,
        {0.1: HOLDS, 0.3: HOLDS, 0.6: FAILS, 0.9: FAILS}, PAIRS[:5],
    ),
}  # fmt: skip


# -- counting ----------------------------------------------------------------------------------------------------------


def simulate(
    claim: str, world: World, effects: Mapping[float, str], pairs: Sequence[int], worlds: int
) -> list[dict[str, Any]]:
    """Per effect and number of pairs, how often each verdict came out."""
    worlds = max(1, worlds // 5) if claim == "adversarial" else worlds  # its searches take longest
    rows = []
    for effect, right in effects.items():
        for n in pairs:
            verdicts = []
            for seed in range(worlds):
                g = torch.Generator().manual_seed(1000 * seed + n)
                verdicts.append(VERIFIERS[claim](world(effect, n, g)).verdict)
            shares = {v: verdicts.count(v) / worlds for v in sorted(set(verdicts))}
            wrong = shares.get(FAILS if right == HOLDS else HOLDS, 0.0)
            rows.append(
                {"effect": effect, "truth": right, "pairs": n, "right": shares.get(right, 0.0), "wrong": wrong,
                 "worlds": worlds}
            )  # fmt: skip
    return rows


def needed(rows: Sequence[Mapping[str, Any]], effect: float) -> int | None:
    """The smallest number of pairs from which on the verdict is right in SURE of the worlds; None where it never is."""
    mine = sorted((r["pairs"], r["right"]) for r in rows if r["effect"] == effect)
    enough = None
    for n, right in reversed(mine):
        if right < SURE:
            break
        enough = n
    return enough


# -- the page ----------------------------------------------------------------------------------------------------------


def page(found: Mapping[str, Sequence[Mapping[str, Any]]], worlds: int) -> str:
    """The page as Markdown."""
    parts = [
        "# How many examples does a claim need?",
        f"Made by `python benchmarks/power.py --worlds {worlds}`: perceptrons written by hand, whose circuit and "
        "effect are known; in every world new examples are drawn and the check is run. Each cell is the share of "
        "worlds, in %, with the right verdict, and after the stroke that with the opposite one; the rest is too little "
        "data. Two prompts make a pair. A figure that meets its bar *holds*, without a margin, and *fails* is said "
        "only where the interval excludes the bar: a circuit a little on the wrong side of it holds by luck, the more "
        "often the fewer pairs.",
        "**What to do with it.** " + advice(found),
    ]
    for claim, rows in found.items():
        what, bar, _, effects, pairs = STUDIES[claim]
        parts.append(f"## {claim.replace('_', ' ')}")
        parts.append(f"The bar is at {bar}. {rows[0]['worlds']} worlds per cell.")
        lines = []
        for effect, right in effects.items():
            cells = [next(r for r in rows if r["effect"] == effect and r["pairs"] == n) for n in pairs]
            told = [f"{100 * c['right']:.0f} / {100 * c['wrong']:.0f}" for c in cells]
            enough = needed(rows, effect)
            lines.append([f"{effect:g}", right, *told, str(enough) if enough else f"more than {pairs[-1]}"])
        head = [what, "truth", *(f"{n} pairs" for n in pairs), f"pairs for {100 * SURE:.0f} %"]
        parts.append(table(head, lines))
    return "\n\n".join(parts) + "\n"


def advice(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The figures of `sufficient` as one sentence, and how often any verdict was the opposite of the right one."""
    rows = found["sufficient"]
    told = []
    for effect in (0.67, 0.8, 1.25, 1.5):
        n = needed(rows, effect)
        told.append(f"{effect * TARGET:.3g} nats needs {f'{n}' if n else f'more than {PAIRS[-1]}'} pairs")
    every = [r for each in found.values() for r in each]
    worst = max(every, key=lambda r: r["wrong"])
    claim = next(c for c, each in found.items() if worst in each)
    return (
        f"To tell, nine times in ten, on which side of a target of {TARGET:g} nats a circuit lies, a true loss of "
        + ", one of ".join(told)
        + f". Over all cells the opposite verdict came out at most in {100 * worst['wrong']:.0f} % of the worlds "
        f"({claim.replace('_', ' ')}, {worst['effect']:g}, {worst['pairs']} pairs)."
    )


if __name__ == "__main__":
    main()
