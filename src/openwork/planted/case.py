"""A planted case: a network whose circuit is known by construction, a task that it solves, and a target in the gap.

"The" circuit of a network depends on what ablated nodes send instead: under another reference another circuit may be
true. So a case names its ablation, and its truth is a claim about that one: alone it reaches the target on the task,
and without any one of its nodes or block edges it does not.

Knows a model's weights, a task, a reference. Does not know methods of discovery, nor how a family sets its weights.

Shapes: N examples, T positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from openwork import patching
from openwork.circuit import Circuit
from openwork.errors import RunError
from openwork.tasks.task import SPLITS, Split, Task, losses

Ablation = Literal["zero", "mean"]

PAIRS = 64  # pairs of examples per split, of vectors and images
SEQUENCES = 96  # and of sequences, where each position is a case of its own
TARGET_AT_MOST = 0.15  # nats
MARGIN = 4.0  # the target is at least this many times the truth's loss, and at most 1/4 of that without any element
PATIENCE = 50  # random prompts with one answer at one position before another position is tried
TRIES = 2_000  # random prompts before a generator is given up

Prompt = tuple[tuple[int, ...], int]  # tokens of a sequence, and the position that is asked
Draw = Callable[[random.Random, int, bool], Prompt]  # (random numbers, number of the pair, out of distribution?)
Answer = Callable[[Sequence[int], int], int | None]  # the right output of a prompt; None where it has none


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its planted circuit.

    family     which file made it: "boolean", "cnn", "attention", "rasp"
    size       prunable nodes of the model that have a weight or a bias, distractors included
    ablation   what the truth is true under: ablated nodes send zero, or their mean over the discover split
    reference  that, as one vector per site
    truth      the circuit: nodes of the prunable sites, and the nonzero weights between them
    target     task loss (nats) in the gap between the truth and the truth without any one element
    moved      site -> int [n], where the nodes of the planted network now are; empty where nothing is beside it
    """

    name: str
    family: str
    size: int
    model: nn.Module
    task: Task
    ablation: Ablation
    reference: Mapping[str, Tensor]
    truth: Circuit
    target: float
    about: str
    moved: Mapping[str, Tensor] = field(default_factory=dict)


def make(
    name: str,
    family: str,
    model: nn.Module,
    task: Task,
    about: str,
    ablation: Ablation = "zero",
    nodes: Mapping[str, Tensor] | None = None,
) -> Case:
    """A case whose target is measured on its discover split.

    nodes   site -> bool [n], the true nodes of prunable sites; without it, all that have a weight or a bias

    Raises RunError where the gap is too narrow: then the network does not hold the circuit that its maker thinks.
    """
    reference = reference_of(model, task, ablation)
    truth = circuit_of(model, nodes if nodes is not None else live(model))
    split = task.split("discover")
    alone = task_loss(model, truth, reference, split)
    without = min(removed for _, removed in removals(model, truth, reference, split))
    target = min(TARGET_AT_MOST, without / MARGIN)
    if alone * MARGIN > target:
        raise RunError(
            f"case {name}: the planted circuit has a task loss of {alone:.3g} nats, and {without:.3g} without one of "
            f"its elements; the target needs a factor of {MARGIN:g} on either side. Change the network or the task."
        )
    return Case(name, family, size_of(model), model, task, ablation, reference, truth, target, about)


# -- circuits --------------------------------------------------------------------------------------------------------


def live(model: nn.Module) -> dict[str, Tensor]:
    """Per prunable site, bool [n]: the nodes with a nonzero weight to or from them, or a nonzero bias of their own."""
    graph, where = patching.graph_of(model), patching.support(model)
    out = {}
    for s in graph.prunable:
        mask = torch.zeros(s.size, dtype=torch.bool)
        for e in graph.into(s.name):
            if e.kind == "weight":
                bias = getattr(model.get_submodule(e.module), "bias", None)
                mask |= where[e.name].any(1)
                mask |= bias.detach() != 0 if bias is not None else False
        for e in graph.out_of(s.name):
            if e.kind == "weight":
                mask |= where[e.name].any(0)
        out[s.name] = mask
    return out


def size_of(model: nn.Module) -> int:
    """Number of live nodes."""
    return sum(int(m.sum()) for m in live(model).values())


def circuit_of(model: nn.Module, nodes: Mapping[str, Tensor]) -> Circuit:
    """The circuit of these nodes (site -> bool [n]; sites that are not prunable stay whole)."""
    return Circuit.from_nodes(patching.graph_of(model), nodes, patching.support(model), {"method": "planted"})


def reference_of(model: nn.Module, task: Task, ablation: Ablation) -> dict[str, Tensor]:
    """What ablated nodes send: zeros, or means over all positions of the discover split's inputs."""
    if ablation == "zero":
        return patching.zero_reference(model)
    return patching.mean_reference(model, [task.split("discover").inputs[:1]])


def task_loss(model: nn.Module, circuit: Circuit | None, reference: patching.Reference, split: Split) -> float:
    """Mean loss (nats) of a circuit alone, or of the whole model."""
    with torch.no_grad():
        return float(losses(patching.run(model, split.inputs, circuit, reference), split).mean())


def removals(
    model: nn.Module, circuit: Circuit, reference: patching.Reference, split: Split
) -> Iterator[tuple[str, float]]:
    """Every node and every block edge of a circuit, with the task loss (nats) of the circuit without it.

    Elements are named "site:node" and "link:dst,src".
    """
    layout = patching.compact(model, circuit, reference)
    present = layout.live()

    def without(mask: Tensor, at: tuple[int, ...]) -> float:
        mask[at] = 0.0
        with torch.no_grad():
            loss = float(losses(layout(*split.inputs), split).mean())
        mask[at] = 1.0
        return loss

    for name, mask in layout.nodes.items():
        for i, node in enumerate(layout.node_index[name].tolist()):
            yield f"{name}:{node}", without(mask, (i,))
    for name, mask in layout.edges.items():
        dst, src = layout.edge_index[name]
        for i, j in present[name].nonzero().tolist():
            yield f"{name}:{int(dst[i])},{int(src[j])}", without(mask, (i, j))


# -- tasks on sequences ----------------------------------------------------------------------------------------------


def sequence_task(
    name: str,
    about: str,
    words: Sequence[str],
    answers: Sequence[str],
    draw: Draw,
    answer: Answer,
    seed: int,
    pairs: int = SEQUENCES,
) -> Task:
    """A task on token sequences: prompts in pairs that differ in one token and call for different answers.

    words    what each token id stands for
    answers  what each output stands for; every output but the right one competes
    draw     makes a prompt; `answer` judges it, and is asked of all outputs in turn so that they are equally frequent

    No prompt is in two splits. Raises RunError where no fitting prompts are found.
    """
    seen: set[Prompt] = set()
    splits = {}
    for split in SPLITS:
        rng = random.Random(f"{name} {split} {seed}")
        rows: list[tuple[Prompt, int]] = []
        for i in range(pairs):
            first, second = _pair(rng, draw, answer, seen, i, split == "ood", len(words), len(answers), name)
            seen |= {first[0], second[0]}
            rows += [first, second]
        splits[split] = _sequences(split, rows, words, answers)
    return Task(name, about, splits, tuple(answers))


def _pair(
    rng: random.Random,
    draw: Draw,
    answer: Answer,
    seen: set[Prompt],
    number: int,
    ood: bool,
    words: int,
    answers: int,
    name: str,
) -> tuple[tuple[Prompt, int], tuple[Prompt, int]]:
    """A new prompt whose answer is the one whose turn it is, and its counterpart.

    Where none is found in a while, a later pair's turn at the same answer is tried: not every position can be asked.
    """
    wanted = number % answers
    for attempt in range(TRIES):
        prompt = draw(rng, number + attempt // PATIENCE * answers, ood)
        if prompt not in seen and answer(*prompt) == wanted:
            other = _counterpart(rng, prompt, wanted, words, answer, seen)
            if other is not None:
                return (prompt, wanted), other
    raise RunError(f"case {name}: {TRIES} random prompts gave no new pair whose answer is output {wanted}.")


def _counterpart(
    rng: random.Random, prompt: Prompt, right: int, words: int, answer: Answer, seen: set[Prompt]
) -> tuple[Prompt, int] | None:
    """The prompt with one token changed so that the answer is another; None where no such prompt is new."""
    tokens, at = prompt
    changes = [(p, w) for p in range(at + 1) for w in range(words) if w != tokens[p]]
    rng.shuffle(changes)
    for p, w in changes:
        other = (*tokens[:p], w, *tokens[p + 1 :])
        new = answer(other, at)
        if new is not None and new != right and (other, at) not in seen:
            return (other, at), new
    return None


def _sequences(split: str, rows: Sequence[tuple[Prompt, int]], words: Sequence[str], answers: Sequence[str]) -> Split:
    tokens = torch.tensor([p[0] for p, _ in rows])
    at = torch.tensor([p[1] for p, _ in rows])
    right = torch.tensor([a for _, a in rows])
    texts = tuple(" ".join(words[t] for t in p[0][: p[1] + 1]) for p, _ in rows)
    return Split(split, (tokens, at), right, all_but(right, len(answers)), torch.arange(len(rows)) ^ 1, texts)


def all_but(right: Tensor, outputs: int) -> Tensor:
    """The wrong outputs [N, outputs - 1] beside the right ones [N]."""
    every = torch.arange(outputs).expand(len(right), -1)
    return every[every != right[:, None]].view(len(right), outputs - 1)
