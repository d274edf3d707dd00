"""A command's result, a plain dict, as text tables for a person.

Lists of records become tables, a record with a `status` inside a record becomes one cell, the rest becomes lines.
Knows dicts and rich. Does not know what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HIDDEN = {"details", "origin", "seed", "seconds", "split", "null", "interval", "unit", "null_value", "p", "n"}


def show_result(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a result: its tables first, its single values last, where the eye ends up."""
    console = console or Console(highlight=False)
    for key, value in result.items():
        _show(key, value, console)
    for key, value in result.items():
        if not _is_table(value) and not isinstance(value, Mapping):
            console.print(f"{escape(key)}: {escape(cell(value))}", soft_wrap=True)


def _show(key: str, value: Any, console: Console) -> None:
    if _is_table(value):
        console.print(table(key, value))
    elif isinstance(value, Mapping):
        lines = {k: v for k, v in value.items() if not _is_table(v)}
        if lines:
            console.print(table(key, [{"": k, "value": v} for k, v in lines.items()]))
        for k, v in value.items():
            if _is_table(v):
                console.print(table(f"{key}: {k}", v))


def _is_table(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(v, Mapping) for v in value)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Records as a table with one column per key, in the order in which keys first appear.

    Evidence (records with a `sentence`) is shown by its sentence; its numbers are for --json and the page.
    """
    names = list(dict.fromkeys(k for row in rows for k in row))
    if "sentence" in names:
        names = [n for n in names if n not in HIDDEN and n != "value"]
    out = Table(
        title=escape(title.replace("_", " ")), title_justify="left", title_style="bold", show_lines="sentence" in names
    )
    for n in names:
        numeric = all(isinstance(row.get(n), int | float) and not isinstance(row.get(n), bool) for row in rows)
        out.add_column(escape(n.replace("_", " ")), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*(escape(cell(row.get(n))) for n in names))
    return out


def cell(value: Any) -> str:
    """One value as short text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return _record(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(cell(v) for v in value) or "none"
    return str(value)


def _record(value: Mapping[str, Any]) -> str:
    """A circuit's account in one cell; any other record as its items."""
    if value.get("status") == "ok":
        parts = [f"{cell(value[k])} {k}" for k in ("nodes", "edges") if value.get(k) is not None]
        parts += [f"{value['loss']:.3f} nats"] if isinstance(value.get("loss"), float) else []
        parts += [f"{value['accuracy']:.1%}"] if isinstance(value.get("accuracy"), float) else []
        return ", ".join(parts)
    if "status" in value:
        return str(value["status"])
    return ", ".join(f"{k} {cell(v)}" for k, v in value.items())
