"""Accounts of what a circuit does, and of where a network's nodes are.

`build_dossier`: the facts of a circuit that a reader or an explainer works from. `build_wiring`: a network in space.
`Explainer`: the reason for one decision, as an exact sum along a circuit's paths.
"""

from openwork.explain.decision import Explainer
from openwork.explain.dossier import VERSION, build_dossier
from openwork.explain.wiring import build_wiring

__all__ = ["VERSION", "Explainer", "build_dossier", "build_wiring"]
