"""openwork: train networks that can be read, find the circuit behind a behaviour, check it, and show it.

The public names, each loaded from its home when first used: `import openwork` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openwork.circuit import Circuit, Evidence, Explanation, Scores
    from openwork.discover import METHODS, MaskSettings, find, trim
    from openwork.errors import OpenworkError, RunError, UsageError
    from openwork.explain import build_dossier
    from openwork.graph import Graph, Link, Site
    from openwork.models import (
        MLP,
        MODELS,
        Components,
        MLPConfig,
        Transformer,
        TransformerConfig,
        at_granularity,
        build,
        read_gpt2,
        read_sequential,
        read_transformer_lens,
    )
    from openwork.patching import (
        compact,
        counterfactual_reference,
        mean_reference,
        patched,
        record,
        resample_reference,
        run,
        support,
        zero_reference,
    )
    from openwork.progress import Progress
    from openwork.store import load_circuit, load_model, model_digest, save_circuit, save_model
    from openwork.tasks import (
        SUBJECT_TASKS,
        Corpus,
        CorpusSettings,
        LanguageData,
        Split,
        Task,
        build_corpus,
        correct,
        digits_data,
        load_corpus,
        losses,
        make_digit_task,
        make_task,
        read_jsonl_task,
    )
    from openwork.training import L1, REGIMES, Dense, TopK, TopKSettings, TrainSettings, make_regime, train
    from openwork.verify import VERIFIERS, Question
    from openwork.views import build_page

__version__ = "0.1.0"

_PUBLIC = {  # module -> its public names
    "circuit": "Circuit Evidence Explanation Scores",
    "discover": "METHODS MaskSettings find trim",
    "errors": "OpenworkError RunError UsageError",
    "explain": "build_dossier",
    "graph": "Graph Link Site",
    "models": "MLP MODELS Components MLPConfig Transformer TransformerConfig at_granularity build "
    "read_gpt2 read_sequential read_transformer_lens",
    "patching": "compact counterfactual_reference mean_reference patched record resample_reference run support "
    "zero_reference",
    "progress": "Progress",
    "store": "load_circuit load_model model_digest save_circuit save_model",
    "tasks": "SUBJECT_TASKS Corpus CorpusSettings LanguageData Split Task build_corpus correct digits_data load_corpus "
    "losses make_digit_task make_task read_jsonl_task",
    "training": "REGIMES L1 Dense TopK TopKSettings TrainSettings make_regime train",
    "verify": "VERIFIERS Question",
    "views": "build_page",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'openwork' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"openwork.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
