"""What was said of a circuit and its parts, as the page shows it: every text beside its score, its null and its mark.

Knows the explanations of circuit.json as plain data. Does not know who wrote them, nor HTML: texts stay texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openwork.views.words import Record, claim_words, mapping, mark_words, number

SHOWN = 120  # characters of an explanation in a list
ICONS = {"holds": "yes", "fails": "no", "too little data": "open"}


def said(explanations: Sequence[Any]) -> dict[str, list[dict[str, str]]]:
    """Subject -> what is said of it, one entry per author: author, text, mark, its icon, score, null."""
    out: dict[str, list[dict[str, str]]] = {}
    for e in explanations:
        e = mapping(e)
        first = mapping(next(iter(e.get("evidence") or []), None))
        out.setdefault(str(e.get("subject", "")), []).append(
            {
                "author": str(e.get("author", "")),
                "text": str(e.get("text") or "") or ("a program" if e.get("program") else "Nothing was said."),
                "mark": mark_words(e.get("evidence") or []),
                "icon": ICONS.get(str(first.get("verdict")), "open"),
                "score": f"{claim_words(str(first['claim']))}: {number(first.get('value'))} {first.get('unit', '')}"
                if "claim" in first
                else "",
                "null": f"{number(first.get('null_value'))} by the best null" if "claim" in first else "",
                "sentence": str(first.get("sentence", "")),
            }
        )
    return out


def rows(explanations: Sequence[Any]) -> list[dict[str, str]]:
    """The explanations of circuits and modules one by one, circuits first; nodes tell their own when selected."""
    by = said(explanations)
    names = [s for s in by if not _is_node(s)]
    whole = [s for s in names if not s.startswith("module ")]
    return [{"subject": s, **one} for s in [*whole, *(n for n in names if n not in whole)] for one in by[s]]


def in_numbers(explanations: Sequence[Any]) -> str:
    """How many explanations of nodes are supported, in one sentence per author; "" where there are none."""
    marks: dict[str, list[str]] = {}
    for subject, entries in said(explanations).items():
        if _is_node(subject):
            for one in entries:
                marks.setdefault(one["author"], []).append(one["icon"])
    return " ".join(
        f"Of {len(m)} nodes explained by {author}, {m.count('yes')} have one that is supported and {m.count('no')} one "
        + ("that is not" + (f"; of {m.count('open')} there is too little data" if m.count("open") else "") + ".")
        for author, m in marks.items()
    )


def in_short(explanations: Sequence[Any]) -> list[dict[str, str]]:
    """As `openwork show` lists them: of circuits and modules one by one, of nodes how many have which mark."""
    out = [
        {
            "subject": r["subject"],
            "explanation": r["text"],
            "author": r["author"],
            "score": r["score"],
            "mark": r["mark"],
        }
        for r in rows(explanations)
    ]
    marks: dict[str, list[str]] = {}
    for subject, entries in said(explanations).items():
        for one in entries if _is_node(subject) else ():
            marks.setdefault(one["author"], []).append(one["mark"])
    for author, m in marks.items():
        counts = ", ".join(f"{m.count(mark)} {mark}" for mark in dict.fromkeys(m))
        out.append(
            {"subject": f"{len(m)} nodes", "explanation": "each its own", "author": author, "score": "", "mark": counts}
        )
    return out


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _is_node(subject: str) -> bool:
    """Whether a subject is named as nodes are, "site:index"."""
    return subject.rpartition(":")[2].isdigit() and ":" in subject


def of_header(header: Record) -> list[Any]:
    """The explanations of a circuit.json, where it has any."""
    have = header.get("explanations", [])
    return list(have) if isinstance(have, list) else []


__all__ = ["in_numbers", "in_short", "of_header", "rows", "said"]
