"""Finding the circuit behind a behaviour. Knows a patched run and one split's loss.

Does not know the split that will judge it, the kind of layer, or the true circuit.

METHODS is the one list: a new method is a new file and one line here. A method is a function
`(search, settings, progress, keeper) -> Scores | Circuit | Discovery`, which puts away how far it is so that a killed
search goes on; those of ONE_PASS take no keeper. Wherever a name is taken, so is a callable of one's own,
`(run, split) -> Scores | Circuit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from openwork.discover.acdc import ACDCSettings, acdc
from openwork.discover.attribution import AttributionSettings, IntegratedSettings, attribution, ig_inputs, ig_masks
from openwork.discover.auto import AutoSettings, search_automatically
from openwork.discover.edge_masks import EdgeMaskSettings, learned_edge_masks
from openwork.discover.exact_patching import exact_patching
from openwork.discover.masks import MaskSettings, learned_masks
from openwork.discover.minimum import ExactResult, exact_minimum
from openwork.discover.modules import ModuleSettings, by_modules
from openwork.discover.recursive import RecursiveSettings, recursive_patching
from openwork.discover.search import (
    Discovery,
    Method,
    OwnMethod,
    Progress,
    Search,
    SearchSettings,
    begin,
    finish,
)
from openwork.discover.state import NOWHERE, Keeper, State
from openwork.discover.trim import Trimmed, trim
from openwork.errors import unknown
from openwork.patched_run import PatchedRun
from openwork.patching import Reference
from openwork.settings import checked
from openwork.tasks.task import Split

METHODS: dict[str, tuple[Method, type[SearchSettings]]] = {
    "auto": (search_automatically, AutoSettings),
    "masks": (learned_masks, MaskSettings),
    "attribution": (attribution, AttributionSettings),
    "ig_inputs": (ig_inputs, IntegratedSettings),
    "ig_masks": (ig_masks, IntegratedSettings),
    "exact_patching": (exact_patching, AttributionSettings),
    "acdc": (acdc, ACDCSettings),
    "edge_masks": (learned_edge_masks, EdgeMaskSettings),
    "modules": (by_modules, ModuleSettings),
    "recursive": (recursive_patching, RecursiveSettings),
}
# A few gradients of all examples and a bisection of some twenty runs: over before there is anything to put away.
ONE_PASS = ("attribution", "ig_inputs", "ig_masks")


def schema_of(method: str | OwnMethod) -> type[SearchSettings]:
    """The schema of a method's settings; refuses an unknown name."""
    if not isinstance(method, str):
        return SearchSettings
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method][1]


def find(
    model: nn.Module,
    reference: Reference | str,
    split: Split,
    method: str | OwnMethod,
    settings: SearchSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    keeper: Keeper = NOWHERE,
    **values: Any,
) -> Discovery:
    """Looks for the circuit that does the task of a split.

    reference  what nodes outside the circuit send: one value per node, or "counterfactual" or "resample"
    split      examples to search on; they are halved, one half to learn, one to decide
    method     one of METHODS, or a callable `(run, split) -> Scores | Circuit`
    settings   of the method; or given one by one as keywords, e.g. `target=0.3` (nats)
    keeper     where every method but those of ONE_PASS puts away how far it is, so that a killed search goes on
    UsageError for an unknown method, a setting that it does not have, and a reference that it cannot work with; where
    nothing meets the target that is no error: `status` is "infeasible".
    """
    schema = schema_of(method)
    asked = settings if settings is not None else checked(schema, values, f"settings of the method {method}")
    search = begin(PatchedRun(model, reference, asked.seed), split, asked)
    if isinstance(method, str):
        kept = () if method in ONE_PASS else (keeper,)
        name, answer = method, METHODS[method][0](search, asked, progress, *kept)
    else:
        name, answer = getattr(method, "__name__", type(method).__name__), method(search.run, search.learn)
    return finish(search, answer, {"method": name, "settings": asked.model_dump(), "split": split.name})


__all__ = [
    "METHODS", "NOWHERE", "ONE_PASS", "ACDCSettings", "AttributionSettings", "AutoSettings", "Discovery",
    "EdgeMaskSettings", "ExactResult", "IntegratedSettings", "Keeper", "MaskSettings", "Method", "ModuleSettings",
    "OwnMethod", "Progress", "RecursiveSettings", "Search", "SearchSettings", "State", "Trimmed", "exact_minimum",
    "find", "schema_of", "trim",
]  # fmt: skip
