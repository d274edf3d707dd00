"""Checking that a circuit is real: each claim tested on data that discovery never saw, against a null.

VERIFIERS is the one list of the checks that a Question alone can answer; a new check is a new file and one line here.
The controls compare two searches and take their plain results instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openwork.circuit import Evidence
from openwork.errors import unknown
from openwork.verify.certified import certified
from openwork.verify.controls import CONTROLS, control
from openwork.verify.generalisation import generalises
from openwork.verify.minimality import one_minimal
from openwork.verify.necessity import necessary
from openwork.verify.question import Question
from openwork.verify.robustness import robust
from openwork.verify.sufficiency import sufficient

VERIFIERS: dict[str, Callable[[Question], Evidence | None]] = {
    "sufficient": sufficient,
    "necessary": necessary,
    "one_minimal": one_minimal,
    "generalises": generalises,
    "robust": robust,
    "certified": certified,
}


def verify(q: Question, claims: Sequence[str] | None = None) -> tuple[Evidence, ...]:
    """Evidence for the claims named (default: all of VERIFIERS), in that order; refuses an unknown claim.

    A check returns None where its claim does not apply to the kind of model; there is then no evidence of that claim.
    """
    names = list(VERIFIERS) if claims is None else list(claims)
    for name in names:
        if name not in VERIFIERS:
            raise unknown("claim", name, VERIFIERS)
    return tuple(e for name in names if (e := VERIFIERS[name](q)) is not None)


__all__ = [
    "CONTROLS",
    "VERIFIERS",
    "Question",
    "certified",
    "control",
    "generalises",
    "necessary",
    "one_minimal",
    "robust",
    "sufficient",
    "verify",
]
