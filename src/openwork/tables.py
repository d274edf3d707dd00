"""A command's result, a plain dict, as text tables for a person.

Lists of records become tables, one line per record; where a record holds circuits (records with a `status`), one line
per circuit. Records of records become tables as well, the rest lines of text. Knows dicts and rich. Does not know what
the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

Record = Mapping[str, Any]

WIDEST = 500  # characters
READABLE = 80  # characters of a line of prose
WIDE = 7  # columns; a table of records with more is turned on its side
SHARES = ("accuracy", "right", "right (verify)")  # columns that are shares
OF_CIRCUITS = ("status", "nodes", "edges", "loss", "accuracy")
OF_EVIDENCE = ("task", "model", "circuit", "claim", "verdict", "sentence")  # the numbers are for --json and the page


def show_result(result: Record, to: Console | None = None) -> None:
    """Prints a result: its tables first, its single values last, where the eye ends up.

    A result that brings a `table` of its own, under its `title`, or several `tables` by title, is shown by these and by
    its `notes`: the rest of it is the same figure by figure. Where no terminal sets a width, such a table is as wide as
    it has to be.
    """
    console = to or Console(highlight=False)
    if isinstance(result.get("tables"), Mapping):
        for title, rows in result["tables"].items():
            if _is_records(rows):
                _print_wide(table(title, rows), console)
        for note in result.get("notes", ()):
            console.print(escape(note), soft_wrap=True)
        result = {k: v for k, v in result.items() if k in ("run", "page", "next")}
    elif _is_records(result.get("table")):
        _print_wide(table(str(result.get("title", "")), result["table"]), console)
        for note in result.get("notes", ()):
            console.print(escape(note), soft_wrap=True)
        result = {k: v for k, v in result.items() if k not in ("table", "title", "notes") and v not in (None, [])}
    else:
        for key, value in result.items():
            _show(key, value, console)
    for key, value in result.items():
        if not _is_records(value) and not isinstance(value, Mapping):
            console.print(f"{escape(_words(key))}: {escape(cell(value))}", soft_wrap=True)


def _print_wide(own: Table, console: Console) -> None:
    if not console.is_terminal:
        console.width = max(console.width, Measurement.get(console, console.options.update(width=WIDEST), own).maximum)
    _print(own, console)


def _print(own: Table, console: Console) -> None:
    """Prints a table below its title, which is one line, however narrow the table."""
    title, own.title = own.title, None
    console.print(title or "", style="bold", soft_wrap=True)
    console.print(own)


def _show(title: str, value: Any, console: Console) -> None:
    if _is_records(value):
        _print(table(title, circuit_lines(value)), console)
        for row in value:
            for key, inner in row.items():
                if _is_records(inner):
                    _show(f"{cell(next(iter(row.values())))}: {key}", inner, console)
    elif isinstance(value, Mapping):
        if value and all(isinstance(v, Mapping) for v in value.values()):
            _print(table(title, _named(title, value)), console)
            return
        lines = [{title: k, "value": v} for k, v in value.items() if not _is_records(v)]
        if lines:
            _print(table(title, lines), console)
        for key, inner in value.items():
            if _is_records(inner):
                _show(f"{title}: {key}", inner, console)


def _is_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, Mapping) for v in value)


def _is_circuit(value: Any) -> bool:
    return isinstance(value, Mapping) and "status" in value


def circuit_lines(rows: Sequence[Record]) -> list[Record]:
    """Records in which circuits stand by name, as one record per circuit; other records as they are."""
    if not any(_is_circuit(v) for row in rows for v in row.values()):
        return list(rows)
    out: list[Record] = []
    for row in rows:
        name = {k: v for k, v in row.items() if isinstance(v, str)}
        for key, c in row.items():
            if _is_circuit(c):
                out.append({**name, "circuit": _words(key), **{k: c[k] for k in OF_CIRCUITS if k in c}})
                name = dict.fromkeys(name, "")
    return out


def _named(title: str, value: Record) -> list[Record]:
    """Records by name as a list of records; turned on its side where that fits a page better."""
    columns = dict.fromkeys(k for v in value.values() for k in v)
    if len(columns) <= WIDE:
        return [{title: name, **v} for name, v in value.items()]
    return [{title: k, **{name: v.get(k) for name, v in value.items()}} for k in columns]


def table(title: str, rows: Sequence[Record]) -> Table:
    """Records as a table with one column per key, in the order in which keys first appear.

    Tables within a record are left out here; evidence (records with a `sentence`) is shown in words only.
    """
    below = {k for row in rows for k, v in row.items() if _is_records(v)}
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in below]
    if told := "sentence" in names:
        names = [n for n in OF_EVIDENCE if n in names]
    out = Table(title=escape(_words(title)), title_justify="left", title_style="bold", show_lines=told)
    for n in names:
        right = all(_is_number(row[n]) for row in rows if row.get(n) is not None)
        whole = n == names[0] and not any(" " in cell(row.get(n), n) for row in rows)  # a record's name is not cut up
        out.add_column(
            escape(_words(n)), justify="right" if right else "left", overflow="fold",
            no_wrap=whole or right, max_width=None if whole or right else READABLE,
        )  # fmt: skip
    for row in rows:
        out.add_row(*(escape(cell(row.get(n), n)) for n in names))
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(key: str) -> str:
    """A key in words; what has spaces or slashes is words, or a path, already."""
    return key if "/" in key or " " in key else key.replace("_", " ")


def cell(value: Any, name: str = "") -> str:
    """One value as short text; `name` is its column's, for those that are a share."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if name in SHARES:
            return f"{value:.1%}"
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {cell(v, k)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(cell(v) for v in value) or "none"
    return str(value)
