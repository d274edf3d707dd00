"""The report of a run as a page: rendered from its content alone, which stands in it, so that it can be checked.

The same content and the same statement of its digest give the same page, byte for byte. Knows that plain data. Does not
know runs, torch, or where figures come from; every text of the content is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from openwork.errors import RunError, UsageError
from openwork.views.flows import environment, style_of
from openwork.views.words import claim_words, interval, probability

FORMAT = "openwork report"
VERSION = 1
Record = Mapping[str, Any]
ICONS = {"holds": "yes", "supported": "yes", "fails": "no", "not supported": "no"}
PART = '<script type="application/json" id="{}">'


def canonical(content: Record) -> bytes:
    """The content as the bytes that are digested and signed: JSON in ASCII, keys sorted, no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def embedded(data: Record) -> str:
    """Canonical JSON that cannot end the script element it stands in."""
    text = canonical(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(content: Record, stated: Record) -> str:
    """The page; RunError for content of another version, or damaged.

    stated  `sha256` of the content, and `hmac_sha256` or None
    """
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise RunError(f"this report has version {content.get('version')!r}; this openwork reads version {VERSION}.")
    env = environment()
    env.filters |= {"claim_words": claim_words, "interval": interval, "probability": probability, "figure": figure}
    style, policy = style_of("page.css", "report.css")
    try:
        html = env.get_template("report.html.j2").render(
            style=Markup(style), policy=policy, c=content, stated=stated, icons=ICONS,
            data=Markup(embedded(content)), signature=Markup(embedded(stated)),
        )  # fmt: skip
    except Exception as e:  # what a template meets in damaged content is of many kinds
        raise RunError(f"the report's content is damaged: {e!r}.") from e
    return html.encode("utf-8", "replace").decode()


def figure(x: Any) -> str:
    """A figure to four significant digits; a dash for none."""
    return "–" if not isinstance(x, int | float) or isinstance(x, bool) else f"{x:.4g}"


def content_of(html: str, path: Path) -> tuple[Record, Record]:
    """The content of a page, and what it states of it; UsageError for a page that is no report."""
    parts = []
    for name in ("report-content", "report-signature"):
        found = re.findall(re.escape(PART.format(name)) + "(.*?)</script>", html, re.DOTALL)
        if len(found) != 1:
            raise UsageError(f"{path} is no report: expected a page that openwork report wrote.")
        try:
            part = json.loads(found[0], parse_constant=lambda c: c)
        except ValueError as e:
            raise RunError(f"{path} is not as it was written: its {name} is no JSON ({e}).") from e
        if not isinstance(part, dict):
            raise RunError(f"{path} is not as it was written: its {name} is no object.")
        parts.append(part)
    return parts[0], parts[1]


__all__ = ["FORMAT", "VERSION", "canonical", "content_of", "embedded", "figure", "render"]
