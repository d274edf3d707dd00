"""What is asked of a language model, and reading what it answers: plain values.

A Request is messages, a bound on the answer's length and the form the answer should have. Its key is the digest of
all that decides the answer, so equal requests are one request. Knows text and JSON. Does not know endpoints, files,
or what the words are about.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

Reply = dict[str, Any]  # a chat completion as OpenAI's API words it, whoever made it

PER_TOKEN = 3  # letters per token in estimates; current tokenizers join more of them
PER_MESSAGE = 4  # tokens around each message


class Unreadable(ValueError):
    """An answer that does not have the form asked for; its text says what is wrong, for the model to mend.

    partial  what could be read nevertheless, None for nothing
    """

    def __init__(self, wrong: str, partial: Any = None) -> None:
        super().__init__(wrong)
        self.partial = partial


@dataclass(frozen=True)
class Request:
    """One request.

    purpose     what it is for ("author", "detection", ...): accounts are kept per purpose
    messages    (role, text) pairs
    max_tokens  longest answer
    schema      JSON schema of the answer, for endpoints that can hold a model to it; {} for free text
    choices     the answer is one of these strings and its probability is wanted; () for an answer in words
    """

    purpose: str
    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    schema: Mapping[str, Any]
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple((role, writable(text)) for role, text in self.messages))

    def key(self, of: str, seed: int) -> str:
        """Digest of all that decides the answer: who is asked, the seed, and the request without its purpose."""
        said = [of, seed, self.messages, self.max_tokens, self.schema, self.choices]
        return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def after(self, answer: str, complaint: str) -> Request:
        """The request to mend an answer that could not be read."""
        return replace(self, messages=(*self.messages, ("assistant", answer or "(nothing)"), ("user", complaint)))

    @property
    def tokens(self) -> int:
        """Estimated tokens sent (see `tokens_of`)."""
        return sum(PER_MESSAGE + tokens_of(text) for _, text in self.messages) + tokens_of(
            json.dumps(dict(self.schema))
        )


_PIECES = re.compile(r"([^\W\d_]+)|(\d|[^\w\s]|_)|(\s{2,}|[^\S ])")


def tokens_of(text: str) -> int:
    """Estimated tokens of a text, above what byte-pair tokenizers of the usual sizes make of text, code and JSON.

    PER_TOKEN bytes of letters count one (rounded up per word), and so does every digit, every byte of a sign and every
    stretch of space that is more than one blank; tokenizers join many of these.
    """
    count = 0
    for letters, sign, _space in _PIECES.findall(text):
        count += math.ceil(len(letters.encode()) / PER_TOKEN) if letters else len(sign.encode()) or 1
    return count


class Backend(Protocol):
    """Whoever answers. `name` says which model where, as ledgers know it: same name, same answers.

    logprobs  whether it tells the probabilities of a request's `choices`
    """

    name: str
    logprobs: bool

    def answer(self, request: Request, key: str, stop: threading.Event) -> Reply:
        """One answer. UsageError or RunError where there can be none, after all patience is spent.

        stop  set when nobody waits for it any more
        """
        ...


# -- reading -----------------------------------------------------------------------------------------------------------


def text_of(reply: Reply) -> str:
    """The answer's words. Servers that part thinking from answering may leave everything in the thinking's field."""
    try:
        message = reply["choices"][0]["message"]
        words = next((w for f in ("content", "reasoning_content", "reasoning") if (w := message.get(f))), "")
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""
    if isinstance(words, list):  # parts
        words = "".join(str(p.get("text", "")) for p in words if isinstance(p, dict))
    return str(words)


def was_cut(reply: Reply) -> bool:
    """Whether the answer ended at its longest, not where the model wanted."""
    try:
        return reply["choices"][0]["finish_reason"] == "length"
    except (KeyError, IndexError, TypeError):
        return False


def probabilities_of(reply: Reply, choices: tuple[str, ...]) -> dict[str, float] | None:
    """Probability of each choice among all choices, from the log-probabilities of the answer's first telling token.

    None where the reply has none: some servers take the wish for them and say nothing.
    """
    try:
        tokens = reply["choices"][0]["logprobs"]["content"]
        for token in tokens:
            found = dict.fromkeys(choices, 0.0)
            for top in token["top_logprobs"]:
                if (word := str(top["token"]).strip()) in found:
                    found[word] += math.exp(float(top["logprob"]))
            if (total := sum(found.values())) > 0 and str(token["token"]).strip():
                return {c: p / total for c, p in found.items()}
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        pass
    return None


def objects_in(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a text that is inside no other, last first: what follows thinking aloud is the answer."""
    text = text.rpartition("</think>")[2] if "</think>" in text else text
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        found.append(value)
    return (o for o in reversed(found) if isinstance(o, dict))


def writable(text: str) -> str:
    """The text with what no UTF-8 can say (halves of surrogate pairs, which JSON can) as question marks."""
    return text.encode("utf-8", "replace").decode()


def clean(text: str, longest: int) -> str:
    """One line of printable words: control characters could steer a terminal, and long texts drown a page."""
    words = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    return words if len(words) <= longest else words[: longest - 3].rstrip() + "..."


__all__ = [
    "Backend", "Reply", "Request", "Unreadable", "clean", "objects_in", "probabilities_of", "text_of", "tokens_of",
    "was_cut", "writable",
]  # fmt: skip
