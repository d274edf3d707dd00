"""Task and Split: examples with a right and a wrong answer, and the loss and the metric over them.

Knows tensors of inputs and output indices. Does not know where the examples come from, nor models or methods.

Shapes: N examples, m wrong answers each, V outputs, T positions, F features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from openwork.errors import UsageError, several, unknown

Inputs = tuple[Tensor, ...]  # positional arguments of a model's forward

SPLITS = ("discover", "verify", "ood", "explain")


@dataclass(frozen=True, eq=False)
class Split:
    """Some examples of a task; disjoint from every other split of the same task. UsageError where parts do not fit.

    name     "discover", "verify", "ood" (out of distribution) or "explain"
    inputs   arguments of the model's forward: (tokens [N, T] right-padded, at [N] the position that is asked) of a
             language model, (x [N, F],) of a model of vectors or of images, whose pixels come flat
    answer   int64 [N], the output index that is right
    wrong    int64 [N, m], the output indices that compete with it
    pair     int64 [N], index of the example's counterpart in this split, or -1
    texts    N strings, the example as a person reads it
    """

    name: str
    inputs: Inputs
    answer: Tensor
    wrong: Tensor
    pair: Tensor
    texts: tuple[str, ...]
    _parts: dict[int, tuple[tuple[Tensor, Split], ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        problems = list(_ill_formed(self))
        if problems:
            raise several(f'split "{self.name}"', problems)

    def __len__(self) -> int:
        return len(self.answer)

    def take(self, index: Tensor) -> Split:
        """The examples at `index` [K] (each at most once), in that order; a counterpart left behind becomes -1."""
        index = index.to(self.answer.device)
        new = torch.full((len(self) + 1,), -1, dtype=torch.long, device=index.device)  # the last entry serves pair -1
        new[index] = torch.arange(len(index), device=index.device)
        return Split(
            self.name,
            tuple(x[index] for x in self.inputs),
            self.answer[index],
            self.wrong[index],
            new[self.pair[index]],
            tuple(self.texts[i] for i in index.tolist()),
        )

    def tight(self) -> Split:
        """The same examples without columns of padding that no example reaches; vectors are returned as they are."""
        if len(self.inputs) != 2 or self.inputs[0].is_floating_point() or not len(self):
            return self
        tokens, at = self.inputs
        return replace(self, inputs=(tokens[:, : int(at.max()) + 1], at))

    def buckets(self, n: int) -> tuple[tuple[Tensor, Split], ...]:
        """The examples in at most `n` parts of like length without needless padding, each with its places [K] here.

        The same examples in another order, which run sooner; asked again, the same tensors.
        """
        if n not in self._parts:
            order = torch.arange(len(self)) if self.tight() is self else torch.argsort(self.inputs[1], stable=True)
            whole = ((order, self),)
            some = tuple((part, self.take(part).tight()) for part in order.chunk(n) if len(part))
            self._parts[n] = whole if self.tight() is self else some
        return self._parts[n]

    def halves(self) -> tuple[Split, Split]:
        """Two disjoint halves, dealt out pair by pair so that counterparts stay together."""
        pair = self.pair.tolist()
        dealt: tuple[list[int], list[int]] = ([], [])
        units = [(i,) if pair[i] < 0 else (i, pair[i]) for i in range(len(self)) if pair[i] < 0 or i < pair[i]]
        for turn, unit in enumerate(units):
            dealt[turn % 2].extend(unit)
        first, second = (self.take(torch.tensor(sorted(part), dtype=torch.long)) for part in dealt)
        return first, second

    def counterfactual(self) -> Inputs:
        """The inputs of each example's counterpart; refuses where an example has none."""
        alone = int((self.pair < 0).sum())
        if alone:
            raise UsageError(
                f'split "{self.name}": {alone} of {len(self)} examples have no counterpart, so there is no '
                "counterfactual reference; use the mean or the zero reference, or give every example a pair."
            )
        return tuple(x[self.pair] for x in self.inputs)

    def shuffled_labels(self, seed: int) -> Split:
        """The nonsense task: the same inputs with labels that the inputs do not determine.

        One wrong answer each: right and wrong trade places in a random half of the examples of every label. Several:
        the labels are dealt out anew by a random permutation of the examples.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator).to(self.answer.device)
        if self.wrong.shape[1] > 1:
            return replace(self, answer=self.answer[order], wrong=self.wrong[order])
        swap = torch.zeros(len(self), dtype=torch.bool, device=self.answer.device)
        for label in self.answer.unique():
            mine = order[self.answer[order] == label]
            swap[mine[: len(mine) // 2]] = True
        other = self.wrong[:, 0]
        answer, wrong = torch.where(swap, other, self.answer), torch.where(swap, self.answer, other)
        return replace(self, answer=answer, wrong=wrong[:, None])

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on a device."""
        return Split(
            self.name,
            tuple(x.to(device) for x in self.inputs),
            self.answer.to(device),
            self.wrong.to(device),
            self.pair.to(device),
            self.texts,
        )


def _ill_formed(split: Split) -> Iterator[str]:
    """What is no split: parts that are no tensors, or of other lengths or dimensions."""
    if not isinstance(split.inputs, tuple):
        yield f"inputs is a {type(split.inputs).__name__}; expected a tuple of tensors, such as (x,)."
        return
    tensors = {f"inputs[{i}]": x for i, x in enumerate(split.inputs)}
    tensors |= {"answer": split.answer, "wrong": split.wrong, "pair": split.pair}
    foreign = [f"{n} is a {type(x).__name__}; expected a tensor." for n, x in tensors.items() if not _is_tensor(x)]
    if foreign:
        yield from foreign
        return
    for name, x, dims, shape in (
        ("answer", split.answer, 1, "[N]"), ("wrong", split.wrong, 2, "[N, m]"), ("pair", split.pair, 1, "[N]")
    ):  # fmt: skip
        if x.dim() != dims:
            yield f"{name} has the shape {tuple(x.shape)}; expected {shape}."
    if split.answer.dim() != 1:
        return
    n = len(split.answer)
    for name, x in (*tensors.items(), ("texts", split.texts)):
        if len(x) != n:
            yield f"{name} has {len(x)} examples where answer has {n}."


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0


@dataclass(frozen=True, eq=False)
class Task:
    """A behaviour to be explained.

    name     one word, in which circuits and files are named
    about    what it asks, in one line
    splits   name -> Split
    answers  as a person reads them: the name of every output in order, or of those that the task asks about
    names    what inputs are called: of vectors the F features, of tokens the text of every id; () where nobody says
    encode   a prompt's token ids, where the task has a tokenizer of its own
    """

    name: str
    about: str
    splits: Mapping[str, Split]
    answers: tuple[str, ...]
    names: tuple[str, ...] = ()
    encode: Callable[[str], list[int]] | None = None

    def split(self, name: str) -> Split:
        """The split of that name; refuses with the nearest one."""
        if name not in self.splits:
            raise unknown(f"split of task {self.name}", name, self.splits)
        return self.splits[name]

    @cached_property
    def asked(self) -> tuple[int, ...]:
        """The outputs that are right or compete in any split, ascending."""
        every = [torch.cat([s.answer, s.wrong.flatten()]).cpu() for s in self.splits.values()]
        return tuple(torch.cat(every).unique().tolist()) if every else ()

    def said(self, output: int) -> str:
        """What a person calls an output; its number where `answers` does not name it."""
        if len(self.answers) == len(self.asked) and output in self.asked:
            return self.answers[self.asked.index(output)]
        named = len(self.answers) != len(self.asked) and 0 <= output < len(self.answers)
        return self.answers[output] if named else str(output)

    def digest(self) -> str:
        """SHA-256 over the examples of all splits: results on another set of examples are other results."""
        h = hashlib.sha256()
        for name, split in sorted(self.splits.items()):
            for x in (*split.inputs, split.answer, split.wrong, split.pair):
                h.update(f"{name} {tuple(x.shape)} {x.dtype}".encode() + x.cpu().contiguous().numpy().tobytes())
        return h.hexdigest()


def _candidates(logits: Tensor, split: Split) -> Tensor:
    """Logits of the right answer (column 0) and the wrong ones: [N, 1 + m]."""
    return logits.gather(1, torch.cat([split.answer[:, None], split.wrong], 1))


def losses(logits: Tensor, split: Split) -> Tensor:
    """Cross-entropy in nats per example [N] of logits [N, V], softmax over the right and the wrong answers only.

    Gao et al. 2025 (arXiv 2511.13653, section 2.2) sum the two members of a pair; here every sequence has its own
    loss and the mean is over sequences, so chance is ln 2 with two answers.
    """
    c = _candidates(logits, split).float()
    return c.logsumexp(1) - c[:, 0]


def correct(logits: Tensor, split: Split) -> Tensor:
    """Whether the right answer has a larger logit than every wrong one: bool [N]; a tie is a mistake."""
    c = _candidates(logits, split)
    return c[:, 0] > c[:, 1:].amax(1)
