"""Small worlds in which it is known what every topic does: the stage for tests of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openwork.circuit import Explanation
from openwork.explain.words.scores import Nulls
from openwork.explain.words.topic import Observed, Sample, Topic

N, T, VOCABULARY, K = 160, 24, 12, 6


def sample(rng: np.random.Generator, n: int = N, t: int = T, vocabulary: int = VOCABULARY) -> Sample:
    """Random sentences of random length."""
    tokens = rng.integers(0, vocabulary, (n, t))
    return Sample("verify", tuple(f"w{i}" for i in range(vocabulary)), tokens, rng.integers(t // 2, t, n))


def topics(k: int = K, sites: int = 1) -> tuple[Topic, ...]:
    """Single nodes, dealt out to sites in turn."""
    return tuple(Topic(f"s{i % sites}:{i}", "node", ((f"s{i % sites}", i),)) for i in range(k))


def observed(s: Sample, activity: np.ndarray, damage: np.ndarray | None = None, sites: int = 1) -> Observed:
    """Activity [K, N, T] of topics; damage is the activity's size over the last eight positions, where not given."""
    a = np.array(activity, dtype=np.float64)
    a[:, ~s.counted] = np.nan
    at = np.arange(a.shape[2])[None, :]
    near = (at <= s.asked[:, None]) & (at > s.asked[:, None] - 8)
    sums = np.nansum(np.where(near, np.abs(a), 0.0), 2)
    return Observed(s, topics(len(a), sites), a, "made up", sums if damage is None else damage)


def on_tokens(s: Sample, tokens: Sequence[int]) -> np.ndarray:
    """[K, N, T]: topic k is active, with 1, on the k-th of these tokens."""
    assert s.tokens is not None
    return np.stack([(s.tokens == t) * 1.0 for t in tokens])


def world(
    seed: int = 0, noise: float = 0.0, n: int = N, k: int = K, draws: int = 19, sites: int = 1
) -> tuple[Observed, Nulls]:
    """Topic k is active on token k; random parts on tokens that no topic has, random weights make noise."""
    rng = np.random.default_rng(seed)
    s = sample(rng, n)
    mine = on_tokens(s, range(k)) + noise * rng.normal(size=(k, n, T))
    parts = tuple(observed(s, on_tokens(s, rng.integers(k, VOCABULARY, k)), sites=sites) for _ in range(draws))
    weights = tuple(observed(s, rng.normal(size=(k, n, T)), rng.normal(size=(k, n)), sites) for _ in range(draws))
    return observed(s, mine, sites=sites), Nulls(parts, weights)


def explanations(o: Observed, shift: int = 0) -> list[Explanation]:
    """For every topic the explanation of the one that comes `shift` after it."""
    k = len(o.topics)
    tokens = [(i + shift) % k for i in range(k)]
    return [said(t.name, {"token": i}, f"fires on w{i}") for t, i in zip(o.topics, tokens, strict=True)]


def said(subject: str, predicate: Mapping[str, Any], text: str = "") -> Explanation:
    """An explanation by nobody."""
    return Explanation(subject, "nobody", text, predicate=predicate)


def judge(e: Explanation, s: Sample) -> np.ndarray:
    """Executes {"token": i}; {"noise": seed} is one random number per place."""
    assert s.tokens is not None
    if "noise" in e.predicate:
        return np.random.default_rng(e.predicate["noise"]).normal(size=s.tokens.shape)
    if "token" not in e.predicate:
        return np.full(s.tokens.shape, np.nan)
    return (s.tokens == e.predicate["token"]) * 1.0
