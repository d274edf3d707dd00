"""Accounts of what a circuit does, and of where a network's nodes are.

`build_dossier`: the facts of a circuit that a reader works from. `build_wiring`: a network in space. `Explainer`: the
reason for one decision, as an exact sum along a circuit's paths. AUTHORS: who may say in words what a circuit and its
parts do; every explanation is tested (see `explain.words.scores`).
"""

from openwork.explain.accounts.decision import Explainer
from openwork.explain.dossier import VERSION, build_dossier
from openwork.explain.wiring import build_wiring

AUTHORS = {  # a function of the user's own is named as module:function
    "rules": "the shortest predicate that gives the activity, by search",
    "llm": "a language model that is shown the card",
}

__all__ = ["AUTHORS", "VERSION", "Explainer", "build_dossier", "build_wiring"]
