"""The author `llm`: a language model reads a part's card and says what the part does.

A card becomes a request, its answer an Account (checked field by field), and that an Explanation. An answer that
cannot be read, even when asked to be mended, becomes an explanation without words whose details say so: it claims
nothing and is never judged.

Knows cards (plain data) and prompts. Does not know the network that is explained, nor the examples on which the
explanation will be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from openwork.circuit import Explanation
from openwork.explain.words.llm import prompts
from openwork.explain.words.llm.asking import Asker
from openwork.explain.words.llm.request import Reply, Request, Unreadable, clean, objects_in, text_of, tokens_of
from openwork.explain.words.topic import Dossier

NAME = "llm"
LONGEST = 500  # characters of one field that are kept
LABELS = 1_500  # tokens, by the estimate of `request`, of what was said of lower parts
DRY_TEXT = "(dry run: here the explanation would stand.) " + "Active where a certain token follows another. " * 6


def _sentence(value: Any) -> Any:
    return clean(value, LONGEST) if isinstance(value, str) else value


def _share(value: Any) -> Any:
    """A confidence as a number from 0 to 1; models also say "80%" and 80."""
    if isinstance(value, str):
        value = value.strip().removesuffix("%")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number / 100 if 1 < number <= 100 else number


def _few(value: Any) -> Any:
    """A list of short texts; models also give one text, or nothing."""
    if value is None or value == "":
        return []
    items = value if isinstance(value, list) else [value]
    return [clean(i, LONGEST) if isinstance(i, str) else clean(str(i), LONGEST) for i in items][:3]


Sentence = Annotated[str, BeforeValidator(_sentence), Field(min_length=1)]


class Account(BaseModel):
    """What a language model said of a part. Fields that were not asked for are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reads: Sentence
    computes: Sentence
    writes: Sentence
    trigger: Sentence
    effect_if_removed: Sentence
    counter_examples: Annotated[tuple[str, ...], BeforeValidator(_few)] = ()
    confidence: Annotated[float, BeforeValidator(_share), Field(ge=0, le=1)]

    @property
    def text(self) -> str:
        """The account as running words, its trigger first."""
        said = (self.trigger, self.reads, self.computes, self.writes)
        return " ".join(s if s.endswith((".", "!", "?")) else f"{s}." for s in said)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{n: {"type": "string"} for n in ("reads", "computes", "writes", "trigger", "effect_if_removed")},
        "counter_examples": {"type": "array", "items": {"type": "string"}},
        "confidence": {"type": "number"},
    },
    "required": list(Account.model_fields),
    "additionalProperties": False,
}


class LLMAuthor:
    """An author (see `explain.words.topic`): Dossier -> Explanation, and `many` of them side by side."""

    def __init__(self, asker: Asker[Any]) -> None:
        self._asker = asker

    @property
    def name(self) -> str:
        """Who is asked, as the ledger knows it: same name, same answers."""
        return self._asker.name

    def __call__(self, dossier: Dossier) -> Explanation:
        return self.many([dossier])[0]

    def many(self, dossiers: Sequence[Dossier]) -> list[Explanation]:
        """The explanations of several parts, in order; asked at the same time, so none sees another's."""
        asker = self._asker
        requests = [self.request(d) for d in dossiers]
        accounts = asker.ask(requests, lambda _, reply: read_account(reply))
        return [self._explanation(d, r, account) for d, r, account in zip(dossiers, requests, accounts, strict=True)]

    def request(self, dossier: Dossier) -> Request:
        """What is asked about a part: its card, and what was said of its own parts that the card does not name.

        Of these as many as fit into LABELS tokens, so that the request is bounded as the card is.
        """
        card, mine = prompts.as_json(dossier.card), set(dossier.topic.nodes)
        inside = (t.name for t in dossier.observed.topics if set(t.nodes) < mine and t.name not in card)
        labels: dict[str, str] = {}
        for name in inside:
            text = dossier.labels.get(name)
            if text and tokens_of(prompts.as_json({**labels, name: text})) <= LABELS:
                labels[name] = text
        messages = prompts.for_author(card, dossier.topic.name, labels)
        return Request("author", messages, self._asker.ledger.options.max_tokens, SCHEMA)

    def _explanation(self, dossier: Dossier, request: Request, account: Account | None) -> Explanation:
        options, asker = self._asker.ledger.options, self._asker
        details: dict[str, Any] = {
            "model": options.model, "endpoint": options.endpoint, "prompt_version": prompts.VERSION,
            "request": request.key(asker.name, asker.seed),
        }  # fmt: skip
        if account is not None:
            details = account.model_dump(mode="json") | details
            return Explanation(dossier.topic.name, NAME, account.text, details=details)
        if asker.dry:
            return Explanation(dossier.topic.name, NAME, DRY_TEXT, details={**details, "dry_run": True})
        return Explanation(dossier.topic.name, NAME, details={**details, "unreadable": True})


def read_account(reply: Reply) -> Account:
    """The account in a reply. Unreadable with all that is wrong with it, in words a model can act on."""
    wrong = "it holds no JSON object."
    for said in objects_in(text_of(reply)):
        try:
            return Account.model_validate(said)
        except ValidationError as e:
            faults = (f'"{".".join(map(str, f["loc"]))}": {f["msg"][0].lower()}{f["msg"][1:]}' for f in e.errors())
            wrong = "; ".join(faults) + "."
    raise Unreadable(wrong)


__all__ = ["DRY_TEXT", "NAME", "Account", "LLMAuthor", "read_account"]
