"""What an explanation is about and what may be known of it: the plain values that authors, judges and scores share.

    Topic     a node, a module or a circuit, as the nodes it is made of
    Sample    examples as a person reads them: tokens and their words, or named features
    Observed  what topics did on a sample, and what their ablation changed there
    Dossier   all that an author may see of one topic: a short card, and observations on the explain split

An author is any callable Dossier -> Explanation. A judge says where an explanation expects activity: any callable
(explanation, sample) -> expected activity of the sample's shape. Knows arrays and plain data. Does not know models,
files, nor the examples on which an explanation will be scored.

Shapes: K topics, N examples, T positions, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openwork.circuit import Explanation

KINDS = ("node", "module", "circuit")


@dataclass(frozen=True)
class Topic:
    """What is explained.

    name   "block0.mlp.act:17" for a node, "module 2", or the name of a circuit; the `subject` of its explanations
    kind   one of KINDS
    nodes  (site, index) of every node in it, in the order of the graph
    """

    name: str
    kind: str
    nodes: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind


Size = tuple[str, tuple[tuple[str, int], ...]]  # kind, and how many nodes of which site


def size_of(topic: Topic) -> Size:
    """What a random part has in common with the topic that it stands for."""
    sites = [s for s, _ in topic.nodes]
    return topic.kind, tuple(sorted((s, sites.count(s)) for s in set(sites)))


@dataclass(frozen=True, eq=False)
class Sample:
    """Some examples of one split, without a model.

    split     name of the split they come from
    words     text of every token id, where examples are tokens; else empty
    tokens    int [N, T], right-padded; None where examples are vectors
    asked     int [N]: the last position that counts, the one whose answer is asked (0 for vectors)
    features  float [N, F], where examples are vectors; None for tokens
    names     F names of the features
    shape     (height, width, channels) where the features are the pixels of an image; else empty
    right     N right answers, as a person reads them
    wrong     N of the wrong answers, the strongest one's text (or all, joined)
    """

    split: str
    words: tuple[str, ...] = ()
    tokens: np.ndarray | None = None
    asked: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    features: np.ndarray | None = None
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def is_text(self) -> bool:
        """Whether examples are tokens."""
        return self.tokens is not None

    @property
    def counted(self) -> np.ndarray:
        """bool [N, T]: positions up to the one that is asked; [N] of ones for vectors."""
        if self.tokens is None:
            return np.ones(len(self), dtype=bool)
        return np.arange(self.tokens.shape[1])[None, :] <= self.asked[:, None]

    def take(self, index: Sequence[int] | np.ndarray) -> Sample:
        """The examples at `index`, in that order."""
        at = np.asarray(index, dtype=np.int64)
        return Sample(
            self.split, self.words,
            None if self.tokens is None else self.tokens[at], self.asked[at],
            None if self.features is None else self.features[at], self.names, self.shape,
            tuple(self.right[i] for i in at) if self.right else (),
            tuple(self.wrong[i] for i in at) if self.wrong else (),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Observed:
    """What topics did on a sample.

    activity  float [K, N, T] for tokens (nan where a position does not count), [K, N] for vectors. Of a node, what it
              sends less what it sends on the reference; of several nodes, the size of what they write together
    unit      what activity is, in words
    damage    float [K, N], nats: how much the task loss of each example rises when the topic alone is ablated
    """

    sample: Sample
    topics: tuple[Topic, ...]
    activity: np.ndarray
    unit: str
    damage: np.ndarray

    def __post_init__(self) -> None:
        k, n = len(self.topics), len(self.sample)
        assert self.activity.shape[:2] == (k, n) and self.damage.shape == (k, n), "arrays do not fit topics and sample"

    def of(self, name: str) -> int:
        """The place of the topic of that name."""
        return [t.name for t in self.topics].index(name)


@dataclass(frozen=True, eq=False)
class Dossier:
    """All that an author may see of one topic.

    card      plain JSON data within a fixed number of tokens: what a language model is shown (see `explain.words.card`)
    observed  the topic and its siblings on the explain split: what a program may search
    topic     which of the observed topics this is about
    labels    subject -> text of the explanations of lower topics that were written before
    """

    card: Mapping[str, Any]
    observed: Observed
    topic: Topic
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def activity(self) -> np.ndarray:
        """The topic's own activity, [N, T] or [N]."""
        return self.observed.activity[self.observed.of(self.topic.name)]


Author = Callable[[Dossier], Explanation]
Judge = Callable[[Explanation, Sample], np.ndarray]  # expected activity, [N, T] or [N]; nan where it cannot say

__all__ = ["KINDS", "Author", "Dossier", "Judge", "Observed", "Sample", "Size", "Topic", "size_of"]
