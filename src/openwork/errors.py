"""Saying no with a reason and a way out.

Two kinds of refusal, told apart by who can mend them: `UsageError` (the request is wrong: exit code 2) and
`RunError` (the request is fine, the world is not: a broken file, a full disk: exit code 1). Knows strings only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class OpenworkError(Exception):
    """Base of every refusal that openwork raises on purpose; its text is one clear sentence for the user."""

    exit_code = 1


class RunError(OpenworkError):
    """What was asked is sensible but cannot be done now: a damaged file, a full disk, a run that does not match."""

    exit_code = 1


class UsageError(OpenworkError):
    """What was asked does not exist or makes no sense: a wrong name, a setting out of range, a malformed file."""

    exit_code = 2


def unknown(kind: str, asked: str, choices: Iterable[str]) -> UsageError:
    """The refusal of a name: what was asked, the nearest that exists, and all that exist."""
    names = sorted(choices)
    near = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    hint = f' Nearest: "{near[0]}".' if near else ""
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return UsageError(f'no {kind} named "{asked}".{hint} There is: {shown or "none"}.')


def several(what: str, problems: Sequence[str]) -> UsageError:
    """One refusal that lists every problem of a file or request at once."""
    if len(problems) == 1:
        return UsageError(f"{what}: {problems[0]}")
    lines = "\n".join(f"  - {p}" for p in problems)
    return UsageError(f"{what}: {len(problems)} problems\n{lines}")
