"""The twenty questions about Python code of Gao et al. 2025 (arXiv 2511.13653, table 1), two answers each.

    six           those of the training mix unless it is told otherwise
    definitions   of names, functions, classes, strings and files
    statements    conditions, loops and where they end

Where the table leaves the second answer open, it was chosen: see `about` of each. A new question is a TaskSpec in one
of these files. Knows templates only.
"""

from __future__ import annotations

from openwork.tasks.python_specs.definitions import DEFINITIONS
from openwork.tasks.python_specs.six import SIX
from openwork.tasks.python_specs.spec import TaskSpec
from openwork.tasks.python_specs.statements import STATEMENTS

TASKS: dict[str, TaskSpec] = {**SIX, **DEFINITIONS, **STATEMENTS}

__all__ = ["SIX", "TASKS", "TaskSpec"]
