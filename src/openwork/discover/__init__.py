"""Finding the circuit behind a behaviour. Knows a patched run and one split's loss.

Does not know the split that will judge it, the kind of layer, or the true circuit.

METHODS is the one list: a new method is a new file and one line here. A method is a function
`(model, reference, split, settings) -> Discovery`.
"""

from __future__ import annotations

from openwork.discover.masks import Discovery, MaskSettings, learned_masks
from openwork.discover.trim import trim

METHODS = {"masks": (learned_masks, MaskSettings)}

__all__ = ["METHODS", "Discovery", "MaskSettings", "learned_masks", "trim"]
