"""The judge `llm`: a language model that sees an explanation, and nothing else of a part, says where it is active.

Questions of one kind about one explanation share requests, a few at a time, under names of their own ("q1", ...) and
in an order of their own, so that neither tells the answer. Where probabilities are to be had (see
`LLMOptions.logprobs`), every question has a request of its own and the probability of "1" is read. What gets no
readable answer is left out and counted; it never counts as "no".

Knows explanations, questions and samples as plain data. Does not know the network, nor the right answers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openwork.circuit import Explanation
from openwork.explain.words.llm import prompts
from openwork.explain.words.llm.asking import Asker
from openwork.explain.words.llm.request import Reply, Request, Unreadable, objects_in, probabilities_of, text_of
from openwork.explain.words.scoring.question import Answers, Ask, Question
from openwork.explain.words.topic import Sample

CONTEXT = 32  # words shown before a snippet
LEVELS = 10  # activity is said from minus this to this
TOGETHER = 400  # numbered tokens that share a request, if more than one example does
CHOICES = ("0", "1")
ONE_CHARACTER = 8  # tokens that suffice for it


@dataclass(frozen=True)
class Batch:
    """One request and what its answer is about: name in the request -> place of the ask, id of the question."""

    request: Request
    asked: Mapping[str, tuple[int, str]]


class LLMJudge:
    """A judge (see `explain.words.topic`) that also answers questions (see `scoring.question.Asks`)."""

    def __init__(self, asker: Asker[Any]) -> None:
        self._asker = asker
        options = asker.ledger.options
        self._one_each = options.logprobs or options.is_local
        self._options = options

    # -- questions -----------------------------------------------------------------------------------------------------

    def answer(self, asks: Sequence[Ask]) -> list[Answers]:
        """Per ask, question id -> probability of yes; without those that got no readable answer.

        An explanation without words gets no answers and costs nothing.
        """
        batches = [b for place, (e, questions) in enumerate(asks) for b in self._batches(place, e, questions)]
        said = self._asker.ask(
            [b.request for b in batches],
            lambda i, reply: self._read_yes_no(batches[i], reply),
            lambda i: len(batches[i].asked),
        )
        answers: list[dict[str, float]] = [{} for _ in asks]
        for batch, found in zip(batches, said, strict=True):
            for name, probability in (found or {}).items():
                place, question = batch.asked[name]
                answers[place][question] = probability
        return list(answers)

    def _batches(self, place: int, explanation: Explanation, questions: Sequence[Question]) -> Iterator[Batch]:
        if not explanation.text:
            return
        groups: dict[tuple[str, int], list[Question]] = {}
        for q in questions:
            groups.setdefault((q.kind, q.side), []).append(q)
        for (kind, side), group in sorted(groups.items()):
            order = sorted(group, key=lambda q: q.id)
            random.Random(f"{self._asker.seed}:{explanation.subject}:{kind}:{side}").shuffle(order)
            size = 1 if self._one_each else self._options.per_prompt
            for start in range(0, len(order), size):
                yield self._batch(place, explanation, kind, side, order[start : start + size])

    def _batch(self, place: int, explanation: Explanation, kind: str, side: int, group: Sequence[Question]) -> Batch:
        named = {f"q{i}": q for i, q in enumerate(group, 1)}
        texts = {name: snippet_text(q) for name, q in named.items()}
        kind_shown = kind if all(q.marked for q in group) else "detection"  # of vectors, nothing is marked
        messages = prompts.for_yes_no(kind_shown, explanation.text, texts, side, self._one_each)
        if self._one_each:
            request = Request(kind, messages, ONE_CHARACTER, {}, CHOICES)
        else:
            request = Request(
                kind, messages, self._options.max_tokens, _keyed(named, {"type": "integer", "enum": [0, 1]})
            )
        return Batch(request, {name: (place, q.id) for name, q in named.items()})

    def _read_yes_no(self, batch: Batch, reply: Reply) -> dict[str, float]:
        if not self._one_each:
            return read_keyed(reply, batch.asked, yes_no)
        (name,) = batch.asked
        if (found := probabilities_of(reply, CHOICES)) is not None:
            return {name: found["1"]}
        if (word := text_of(reply).strip().strip("\"'.*` ")) in CHOICES:
            return {name: float(word)}
        raise Unreadable('it is neither "0" nor "1".')

    # -- simulation ----------------------------------------------------------------------------------------------------

    def __call__(self, explanation: Explanation, sample: Sample) -> np.ndarray:
        """Expected activity on the whole sample, -10 to 10, [N, T] or [N]; nan where it was not said.

        Give a sample of the examples that are needed (`Sample.take`): each of them is asked about.
        """
        values = np.full(sample.counted.shape, np.nan)
        if not explanation.text:
            return values
        lengths = sample.counted.sum(1) if sample.is_text else np.ones(len(sample), dtype=np.int64)
        widest = int(lengths.max(initial=1))
        size = max(1, min(self._options.per_prompt, TOGETHER // widest))
        groups = [range(i, min(i + size, len(sample))) for i in range(0, len(sample), size)]
        requests = [self._simulation(explanation, sample, group) for group in groups]
        said = self._asker.ask(
            requests, lambda i, reply: self._read_simulation(groups[i], lengths, sample.is_text, reply),
            lambda i: len(groups[i]),
        )  # fmt: skip
        for found in said:
            for n, row in (found or {}).items():
                values[int(n), ...] = np.nan if sample.is_text else row
                if sample.is_text:
                    values[int(n), : len(row)] = row
        return values

    def _simulation(self, explanation: Explanation, sample: Sample, group: range) -> Request:
        named = {f"e{n - group.start + 1}": example_text(sample, n) for n in group}
        messages = prompts.for_simulation(explanation.text, named, sample.is_text)
        place = {
            "type": "object", "properties": {"at": {"type": "integer"}, "level": {"type": "number"}},
            "required": ["at", "level"], "additionalProperties": False,
        }  # fmt: skip
        value = {"type": "array", "items": place} if sample.is_text else {"type": "number"}
        return Request("simulation", messages, self._options.max_tokens, _keyed(named, value))

    def _read_simulation(self, group: range, lengths: np.ndarray, is_text: bool, reply: Reply) -> dict[str, Any]:
        """Place of each example in the sample (as text) -> activity [its counted positions], or one number."""
        named = {f"e{n - group.start + 1}": n for n in group}

        def of_example(name: str, value: Any) -> Any:
            return levels(value, int(lengths[named[name]])) if is_text else level(value)

        try:
            found = read_keyed(reply, named, of_example)
        except Unreadable as e:
            partial = None if e.partial is None else {str(named[k]): v for k, v in e.partial.items()}
            raise Unreadable(str(e), partial) from e
        return {str(named[name]): value for name, value in found.items()}


# -- reading answers ---------------------------------------------------------------------------------------------------


def read_keyed(reply: Reply, names: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """name -> what `value(name, said)` makes of it, for every name. Unreadable (with the rest) where one is missing.

    value  raises ValueError for what it cannot take
    """
    best: dict[str, Any] = {}
    wrong = "it holds no JSON object."
    for said in objects_in(text_of(reply)):
        found, faults = {}, []
        for name in names:
            try:
                found[name] = value(name, said[name])
            except KeyError:
                faults.append(f'"{name}" is missing')
            except (ValueError, TypeError) as e:
                faults.append(f'"{name}": {e}')
        if not faults:
            return found
        if len(found) > len(best) or not best:
            best, wrong = found, "; ".join(faults[:5]) + "."
    raise Unreadable(wrong, best or None)


def yes_no(_name: str, said: Any) -> float:
    """1 or 0 from what a model gives for yes or no; ValueError for anything else."""
    words = {"1": 1.0, "0": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}
    word = str(said).strip().lower()
    if word not in words:
        raise ValueError("expected 1 or 0")
    return words[word]


def level(said: Any) -> float:
    """A number of size LEVELS at most; ValueError for anything else."""
    number = float(said)
    if isinstance(said, bool) or not -LEVELS <= number <= LEVELS:
        raise ValueError(f"expected a number from -{LEVELS} to {LEVELS}")
    return number


def levels(said: Any, length: int) -> np.ndarray:
    """The activity at each of `length` tokens, from the list of those that are not silent; ValueError for nonsense."""
    if not isinstance(said, list):
        raise ValueError('expected a list of {"at": ..., "level": ...}')
    row = np.zeros(length)
    for item in said:
        if not isinstance(item, dict) or not {"at", "level"} <= item.keys():
            raise ValueError('expected objects {"at": ..., "level": ...}')
        at = item["at"]
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < length:
            raise ValueError(f"there is no token {at!r}; the last is {length - 1}")
        row[at] = level(item["level"])
    return row


def _keyed(names: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": {n: dict(value) for n in names}, "required": list(names),
        "additionalProperties": False,
    }  # fmt: skip


# -- writing examples --------------------------------------------------------------------------------------------------


def is_vector(question: Question) -> bool:
    """Whether its snippet is one example of named values, not a stretch of tokens."""
    return len(question.snippet) != question.stop - question.start


def snippet_text(question: Question) -> str:
    """The snippet as it is shown, with a few words before it and its marks."""
    if is_vector(question):
        return ", ".join(question.snippet)
    marks = [i in set(question.marks) for i in range(len(question.snippet))]
    return prompts.shown("".join(question.context[-CONTEXT:]), prompts.marked(question.snippet, marks))


def example_text(sample: Sample, n: int) -> str:
    """Example n as it is shown for simulation."""
    if sample.tokens is not None:
        ids = sample.tokens[n, : int(sample.asked[n]) + 1].tolist()
        return prompts.numbered([sample.words[i] for i in ids])
    assert sample.features is not None
    row = sample.features[n].tolist()
    return prompts.values(sample.names or [f"x{i}" for i in range(len(row))], row, sample.shape)


__all__ = ["LLMJudge", "example_text", "level", "levels", "read_keyed", "snippet_text", "yes_no"]
