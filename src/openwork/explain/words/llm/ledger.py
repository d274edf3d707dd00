"""Every answer is kept, so that nothing is paid twice: one file per request, named by the digest of what was asked.

    ANSWERS/ab/ab12....json   the request, the raw reply, its tokens, what it cost, when
    ANSWERS/faults.jsonl      every try that failed: when, how, how long was waited

A file is written whole when its answer has arrived (see `files`), so a killed process loses only what was under way.
The ledger counts what was asked now and what was known, tokens, cost, faults and answers that could not be read. The
key of an endpoint is taken out of whatever is written or said.

Knows files and numbers. Does not know endpoints or prompts.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openwork import files
from openwork.errors import RunError
from openwork.explain.words.llm.request import Reply, Request, text_of, tokens_of, writable
from openwork.llm_options import LLMOptions

FORMAT, VERSION = "openwork-llm-answer", 1
FAULTS = "faults.jsonl"
SHORTEST_SECRET = 8  # shorter keys ("none", "x") are no secrets, and taking them out would tear words apart


class Ledger:
    """What was asked and answered. Threads may share it; processes too, at the price of asking at the same time.

    folder   where answers are kept
    planned  in a dry run, the requests that would have been sent, in order
    """

    def __init__(self, folder: Path, options: LLMOptions, secret: str = "") -> None:
        self.folder = Path(folder)
        self.options = options
        self.planned: list[Request] = []
        self._secret = secret if len(secret) >= SHORTEST_SECRET else ""
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._count: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._answers: dict[str, Counter[str]] = {}
        self._cost = 0.0
        self._cost_now = 0.0

    # -- answers -------------------------------------------------------------------------------------------------------

    def path(self, key: str) -> Path:
        """The file of a request."""
        return self.folder / key[:2] / f"{key}.json"

    def find(self, key: str) -> Reply | None:
        """The reply to a request that was answered before, else None."""
        path = self.path(key)
        if not path.exists():
            return None
        record = files.read_json(path)
        if record.get("format") != FORMAT or record.get("version") != VERSION or "reply" not in record:
            raise RunError(f"{path} is damaged: it is no answer of format {FORMAT} {VERSION}. Delete it to ask again.")
        self._note(key, record, now=False)
        return record["reply"]

    def keep(self, key: str, request: Request, of: str, reply: Reply, seconds: float) -> None:
        """Puts away a reply that has just arrived; what it cost is noted with it."""
        usage = usage_of(reply, request)
        record = self.scrubbed(
            {
                "format": FORMAT, "version": VERSION, "asked": of, "purpose": request.purpose,
                "request": {
                    "messages": [{"role": role, "content": text} for role, text in request.messages],
                    "max_tokens": request.max_tokens, "schema": dict(request.schema), "choices": list(request.choices),
                },
                "reply": reply, "usage": usage, "cost": self.price(usage["in"], usage["out"]), "seconds": seconds,
                "at": _now(),
            }
        )  # fmt: skip
        files.write_json(self.path(key), record)
        self._note(key, record, now=True)

    def _note(self, key: str, record: Mapping[str, Any], now: bool) -> None:
        """Counts an answer once, however often it is looked up."""
        with self._lock:
            if key in self._used:
                return
            self._used.add(key)
            usage = record["usage"]
            self._count.update({"requests": 1, "asked_now": int(now), "in": usage["in"], "out": usage["out"]})
            self._count.update({"in_now": now * usage["in"], "out_now": now * usage["out"]})
            self._count["estimated"] += bool(usage["estimated"])
            cost = self.price(usage["in"], usage["out"])
            self._cost += cost or 0.0
            self._cost_now += (cost or 0.0) if now else 0.0

    # -- what went wrong -----------------------------------------------------------------------------------------------

    def fault(self, key: str, kind: str, said: str, attempt: int, wait: float) -> None:
        """Notes a try that failed."""
        with self._lock:
            self._faults[kind] += 1
            note = {"at": _now(), "key": key, "kind": kind, "said": said, "try": attempt, "wait_seconds": wait}
            files.append_jsonl(self.folder / FAULTS, self.scrubbed(note))

    def read(self, purpose: str, wanted: int, unreadable: int, repaired: int) -> None:
        """Counts answers of a purpose: how many were wanted, could not be read even when mended, were mended."""
        with self._lock:
            count = self._answers.setdefault(purpose, Counter())
            count.update({"wanted": wanted, "unreadable": unreadable, "repaired": repaired})

    def plan(self, key: str, request: Request) -> None:
        """In a dry run: notes a request instead of sending it; equal ones once."""
        with self._lock:
            if key not in self._used:
                self._used.add(key)
                self.planned.append(request)

    def scrubbed(self, value: Any) -> Any:
        """The same plain data without the key, wherever in it a server may have repeated it, and fit to be written."""
        if isinstance(value, str):
            return writable(value.replace(self._secret, "[key]") if self._secret else value)
        if isinstance(value, Mapping):
            return {self.scrubbed(k): self.scrubbed(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.scrubbed(v) for v in value]
        return value

    # -- accounts ------------------------------------------------------------------------------------------------------

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost in the currency of the prices; None while a price is not known."""
        a, b = self.options.price_in, self.options.price_out
        return None if a is None or b is None else (a * tokens_in + b * tokens_out) / 1e6

    def summary(self) -> dict[str, Any]:
        """The accounts as plain data.

        requests        different requests whose answers were used; `asked_now` of them by this process
        tokens_in/out   of all those; `_now` of those that this process asked; `estimated`: answers without a count
        cost, cost_now  likewise, None without prices
        faults          tries that failed, by kind
        answers         per purpose: wanted, unreadable (after one request to mend it), repaired, and the rate
        """
        with self._lock:
            c, priced = self._count, self.price(0, 0) is not None
            return {
                "model": self.options.model, "endpoint": self.options.endpoint,
                "requests": c["requests"], "asked_now": c["asked_now"],
                "tokens_in": c["in"], "tokens_out": c["out"], "tokens_in_now": c["in_now"],
                "tokens_out_now": c["out_now"], "estimated": c["estimated"],
                "cost": self._cost if priced else None, "cost_now": self._cost_now if priced else None,
                "faults": dict(sorted(self._faults.items())),
                "answers": {
                    purpose: {**{k: n[k] for k in ("wanted", "unreadable", "repaired")},
                              "unreadable_rate": n["unreadable"] / n["wanted"] if n["wanted"] else 0.0}
                    for purpose, n in sorted(self._answers.items())
                },
                "plan": self._plan() if self.options.dry_run else None,
            }  # fmt: skip

    def _plan(self) -> dict[str, Any]:
        tokens_in, tokens_out = sum(r.tokens for r in self.planned), sum(r.max_tokens for r in self.planned)
        by = Counter(r.purpose for r in self.planned)
        return {
            "requests": len(self.planned), "by_purpose": dict(sorted(by.items())), "tokens_in_at_most": tokens_in,
            "tokens_out_at_most": tokens_out, "cost_at_most": self.price(tokens_in, tokens_out),
        }  # fmt: skip

    def plan_result(self) -> dict[str, Any]:
        """What a dry run would have sent, as a command's result: a table by purpose, and every prompt in full."""
        plan = self._plan()
        rows = []
        for purpose in plan["by_purpose"]:
            some = [r for r in self.planned if r.purpose == purpose]
            tokens_in, tokens_out = sum(r.tokens for r in some), sum(r.max_tokens for r in some)
            rows.append(
                {"purpose": purpose, "requests": len(some), "tokens in": tokens_in, "tokens out, at most": tokens_out,
                 "cost, at most": self.price(tokens_in, tokens_out)}
            )  # fmt: skip
        cost = "" if plan["cost_at_most"] is None else f", at most {plan['cost_at_most']:.4f} in your prices"
        total = (
            f"{plan['requests']} requests, about {plan['tokens_in_at_most']:,} tokens in, at most "
            f"{plan['tokens_out_at_most']:,} out{cost}. Nothing was sent."
        )
        prompts = [
            {"purpose": r.purpose, "tokens_in": r.tokens, "tokens_out_at_most": r.max_tokens,
             "messages": [{"role": role, "content": text} for role, text in r.messages]}
            for r in self.planned
        ]  # fmt: skip
        notes = [_prompt_text(i, len(self.planned), r) for i, r in enumerate(self.planned, 1)] + [total]
        title = f"what would be sent to {self.options.endpoint}"
        return {"title": title, "table": rows, "notes": notes, "plan": plan, "prompts": prompts}


def _prompt_text(i: int, of: int, r: Request) -> str:
    said = "\n".join(f"[{role}]\n{text}" for role, text in r.messages)
    head = f"request {i} of {of}: {r.purpose}, about {r.tokens:,} tokens in, at most {r.max_tokens:,} out"
    return f"--- {head} ---\n{said}\n"


def usage_of(reply: Reply, request: Request) -> dict[str, Any]:
    """Tokens in and out as the reply counts them, else estimated."""
    usage = reply.get("usage")
    try:
        return {"in": int(usage["prompt_tokens"]), "out": int(usage["completion_tokens"]), "estimated": False}  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return {"in": request.tokens, "out": tokens_of(text_of(reply)), "estimated": True}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


__all__ = ["FAULTS", "Ledger", "usage_of"]
