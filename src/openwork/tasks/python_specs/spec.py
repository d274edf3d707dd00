"""What a question about Python code is made of: two answers, what switches between them, and templates by pool.

Knows names and strings. Does not know words, tokens or examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSpec:
    """One question.

    about      what it asks, in one line
    answers    the first and the second answer, each a single token
    switches   slot in capitals -> what it stands for in the first and in the second member of a pair, small slots
               included; where there are several choices, one is drawn per member
    rest       how the statement goes on after each answer (training mix only)
    templates  pool -> prompts; the first two of "train", the shortest, come most often in the training mix
    """

    about: str
    answers: tuple[str, str]
    switches: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    rest: tuple[str, str]
    templates: Mapping[str, tuple[str, ...]]


def swap(first: str, second: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A slot that stands for one string in the first member of a pair and for another in the second."""
    return (first,), (second,)
