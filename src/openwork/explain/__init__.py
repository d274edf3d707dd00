"""Accounts of what a circuit does. `build_dossier` is the first: the facts that a reader or an explainer works from."""

from openwork.explain.dossier import VERSION, build_dossier

__all__ = ["VERSION", "build_dossier"]
