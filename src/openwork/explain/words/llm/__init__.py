"""Language models as authors and judges of explanations: an OpenAI-compatible endpoint, or a model in this process.

    author, judge, ledger = make_llm_author(LLMOptions(base_url=..., model=...), Path("runs/a/llm"))
    explanations = author.many(dossiers)     # or author(dossier)
    answers = judge.answer(asks)             # or judge(explanation, sample): expected activity
    ledger.summary()                         # requests, tokens, cost, faults, what could not be read

Every answer is kept in the folder given: the same request is never sent twice, whatever happens to the process. Knows
how the pieces fit. Does not know the network that is explained.
"""

from __future__ import annotations

from pathlib import Path

from openwork.explain.words.llm import client, huggingface
from openwork.explain.words.llm.asking import Asker
from openwork.explain.words.llm.author import LLMAuthor
from openwork.explain.words.llm.judge import LLMJudge
from openwork.explain.words.llm.ledger import Ledger
from openwork.explain.words.llm.request import Backend
from openwork.llm_options import LLMOptions


def make_llm_author(options: LLMOptions, cache_dir: Path, seed: int = 0) -> tuple[LLMAuthor, LLMJudge, Ledger]:
    """An author, a judge and their common ledger. UsageError where the options name no model that can be asked.

    cache_dir  folder for answers, which may already hold some; nothing is written in a dry run
    seed       goes with every request, and decides the jitter of waits

    Nothing is sent, loaded or imported before the first answer is missing.
    """
    options = options.checked()
    is_local = options.is_local
    key = "" if is_local or options.dry_run else client.key_for(options)
    ledger = Ledger(cache_dir, options, key)

    def backend() -> Backend:
        return huggingface.HuggingFace(options) if is_local else client.Endpoint(options, ledger, seed, key)

    name = huggingface.name_of(options) if is_local else client.name_of(options)
    asker = Asker(backend, name, ledger, seed)
    return LLMAuthor(asker), LLMJudge(asker), ledger


__all__ = ["LLMAuthor", "LLMJudge", "LLMOptions", "Ledger", "make_llm_author"]
