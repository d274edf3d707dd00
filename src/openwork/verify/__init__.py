"""Checking that a circuit is real: each claim tested on data that discovery never saw, against a null.

VERIFIERS is the one list of the checks that a Question alone can answer; a new check is a new file and one line here.
The controls and `stable` compare several searches and take their plain results instead. COMPARISONS holds the tests of
the literature, to be set beside these; they are asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openwork.circuit import Evidence
from openwork.errors import unknown
from openwork.verify.adversary import adversarial
from openwork.verify.attention import has_attention, keeps_attention
from openwork.verify.certified import certified
from openwork.verify.controls import CONTROLS, control
from openwork.verify.dependence import reference_dependence
from openwork.verify.generalisation import generalises
from openwork.verify.minimality import one_minimal
from openwork.verify.mistakes import agrees_on_mistakes
from openwork.verify.necessity import necessary
from openwork.verify.question import Question
from openwork.verify.robustness import robust
from openwork.verify.selectivity import selective
from openwork.verify.stability import stable
from openwork.verify.sufficiency import sufficient
from openwork.verify.tests_of_literature import COMPARISONS

VERIFIERS: dict[str, Callable[[Question], Evidence | None]] = {
    "sufficient": sufficient,
    "necessary": necessary,
    "one_minimal": one_minimal,
    "generalises": generalises,
    "agrees_on_mistakes": agrees_on_mistakes,
    "robust": robust,
    "certified": certified,
    "adversarial": adversarial,
    "reference_dependence": reference_dependence,
    "keeps_attention": keeps_attention,
    "selective": selective,
}

# claim -> whether a question can have it: a perceptron keeps no attention. What was not asked for by name and cannot be
# had is left out, so that no reader takes it for a test that lacked data.
APPLIES: dict[str, Callable[[Question], bool]] = {
    "keeps_attention": has_attention,
    "selective": lambda q: bool(q.others),
}


def verify(q: Question, claims: Sequence[str] | None = None) -> tuple[Evidence, ...]:
    """Evidence for the claims named, in that order (default: all of VERIFIERS that the question can have).

    Refuses an unknown claim. One that is named but cannot be had is "too little data", and its sentence says why; of a
    claim that makes no sense for a kind of model (`certified` of anything but a ReLU perceptron) there is no evidence.
    """
    names = [n for n in VERIFIERS if n not in APPLIES or APPLIES[n](q)] if claims is None else list(claims)
    for name in names:
        if name not in VERIFIERS:
            raise unknown("claim", name, VERIFIERS)
    return tuple(e for name in names if (e := VERIFIERS[name](q)) is not None)


__all__ = [
    "APPLIES",
    "COMPARISONS",
    "CONTROLS",
    "VERIFIERS",
    "Question",
    "adversarial",
    "agrees_on_mistakes",
    "certified",
    "control",
    "generalises",
    "keeps_attention",
    "necessary",
    "one_minimal",
    "reference_dependence",
    "robust",
    "selective",
    "stable",
    "sufficient",
    "verify",
]
