"""Scores of explanations, one way per file: each takes a Hearing and returns Evidence with its nulls.

SCORES is the one list, in the order in which evidence stands on an explanation; `trigger` is first and decides whether
an explanation is supported. None where a score makes no sense for a kind of example.
"""

from __future__ import annotations

from openwork.explain.words.scoring.damage import damage
from openwork.explain.words.scoring.detection import detection
from openwork.explain.words.scoring.fuzzing import fuzzing
from openwork.explain.words.scoring.hearing import Hearing, Interchanges, Material, Nulls, Score, ScoreSettings
from openwork.explain.words.scoring.identified import identified
from openwork.explain.words.scoring.interchange import interchange
from openwork.explain.words.scoring.question import Answers, Asks, Executed, Question
from openwork.explain.words.scoring.simulation import simulation
from openwork.explain.words.scoring.trigger import trigger

SCORES: dict[str, Score] = {
    "trigger": trigger,
    "detection": detection,
    "fuzzing": fuzzing,
    "simulation": simulation,
    "damage": damage,
    "identified": identified,
    "interchange": interchange,
}

__all__ = [
    "SCORES", "Answers", "Asks", "Executed", "Hearing", "Interchanges", "Material", "Nulls", "Question", "Score",
    "ScoreSettings",
]  # fmt: skip
