"""Parts of an imagined network whose meaning is known, and a program that has them explained, to be killed midway.

Part k is active, at 1, on exactly the word WORDS[k], and nearly silent elsewhere.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from openwork.circuit import Explanation
from openwork.explain.words.llm import LLMOptions, make_llm_author
from openwork.explain.words.scoring.question import Ask, Kind, Question
from openwork.explain.words.topic import Dossier, Observed, Sample, Topic

WORDS = (" ash", " birch", " cedar", " elm", " fir", " hazel", " larch", " maple", " oak", " pine", " rowan", " yew")


def sample(split: str, seed: int, n: int = 24, t: int = 12) -> Sample:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, len(WORDS), (n, t))
    return Sample(split, WORDS, tokens, rng.integers(t // 2, t, n))


def activity(s: Sample, k: int) -> np.ndarray:
    """Activity of part k: [N, T], nan where positions do not count."""
    assert s.tokens is not None
    return np.where(s.counted, np.where(s.tokens == k, 1.0, 0.01), np.nan)


def observed(s: Sample, parts: int) -> Observed:
    topics = tuple(Topic(f"block0.mlp.act:{k}", "node", (("block0.mlp.act", k),)) for k in range(parts))
    return Observed(s, topics, np.stack([activity(s, k) for k in range(parts)]), "activity", np.zeros((parts, len(s))))


def dossiers(parts: int) -> list[Dossier]:
    s = sample("explain", 0)
    seen = observed(s, parts)
    out = []
    for k, topic in enumerate(seen.topics):
        examples = [
            {"tokens": [WORDS[i] for i in s.tokens[n, : s.asked[n] + 1]],  # type: ignore[index]
             "activity": [round(10 * a) for a in seen.activity[k, n, : s.asked[n] + 1]]}
            for n in range(6)
        ]  # fmt: skip
        out.append(Dossier({"part": topic.name, "examples": examples}, seen, topic))
    return out


def truth(question: Question, s: Sample, k: int) -> bool:
    """Whether the right answer about part k is yes."""
    active = activity(s, k)[question.example] > 0.5
    at = list(question.marked) if question.marked else list(range(question.start, question.stop))
    return bool(active[at].all() if question.marked else active[at].any())


def question(s: Sample, kind: Kind, n: int, marked: list[int], side: int = 1) -> Question:
    """A question about the first ten positions of an example, or about the marked ones of them."""
    assert s.tokens is not None
    stop = min(10, int(s.asked[n]) + 1)
    words = tuple(s.words[i] for i in s.tokens[n, :stop])
    return Question(kind, f"{kind}/{n}/{marked}/{side}", n, 0, stop, tuple(marked), side, (), words)


def questions(s: Sample) -> list[Question]:
    """For every example, one question of each kind."""
    rng, out = np.random.default_rng(5), []
    for n in range(len(s)):
        p, q = rng.integers(0, min(10, int(s.asked[n]) + 1), 2).tolist()
        out += [question(s, "trigger", n, [p]), question(s, "detection", n, [])]
        out.append(question(s, "fuzzing", n, sorted({p, q})))
    return out


def explained(options: LLMOptions, folder: Path, parts: int) -> tuple[list[Explanation], list[Any], dict[str, Any]]:
    """Everything in order: explanations of all parts, answers to all questions about them, accounts."""
    author, judge, ledger = make_llm_author(options, folder)
    explanations = author.many(dossiers(parts))
    s = sample("verify", 1)
    asks: list[Ask] = [(e, questions(s)) for e in explanations]
    answers = judge.answer(asks)
    return explanations, [dict(a) for a in answers], ledger.summary()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    told = explained(LLMOptions(**given["options"]), Path(given["folder"]), given["parts"])
    print(json.dumps({"text": [e.text for e in told[0]], "answers": told[1], "summary": told[2]}))
