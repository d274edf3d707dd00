"""A Hugging Face model in this process: answers in words, and the probability of every answer that may be given.

Nothing leaves the machine, and nothing is fetched for a folder. Weights are read from safetensors only, and code that
comes with a model is not run. Decoding is greedy, so the same request has the same answer.

Knows `transformers` (an extra) and torch. Does not know prompts. Requests are answered one at a time, by whoever asks.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from openwork.errors import RunError, UsageError
from openwork.explain.words.llm.request import Reply, Request
from openwork.files import sha256
from openwork.llm_options import LOCAL, LLMOptions


class HuggingFace:
    """A backend (see `request.Backend`) whose model runs here."""

    logprobs = True

    def __init__(self, options: LLMOptions) -> None:
        self.name = name_of(options)
        self._path = str(options.model).removeprefix(LOCAL)
        self._model, self._tokenizer = _load(self._path)
        ends = self._model.generation_config.eos_token_id
        self._pad = ends[0] if isinstance(ends, list) and ends else ends if isinstance(ends, int) else 0

    def answer(self, request: Request, key: str, stop: threading.Event) -> Reply:
        """The answer; of a request with `choices`, the likeliest one and the log-probabilities of all."""
        return self._choose(request) if request.choices else self._speak(request)

    def _prompt(self, request: Request) -> list[int]:
        messages = [{"role": role, "content": text} for role, text in request.messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        else:  # a model that was never taught to chat goes on with the text
            ids = self._tokenizer("\n\n".join(m["content"] for m in messages) + "\n\n")["input_ids"]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and len(ids) >= room:
            raise RunError(
                f"a prompt of {len(ids):,} tokens does not fit into {self._path}, which reads {room:,}; "
                "use a model with a longer context."
            )
        return list(ids)

    def _speak(self, request: Request) -> Reply:
        import torch

        prompt = self._prompt(request)
        room = getattr(self._model.config, "max_position_embeddings", None)
        length = request.max_tokens if room is None else min(request.max_tokens, room - len(prompt))
        ids = torch.tensor([prompt], device=self._model.device)
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False,
                pad_token_id=self._pad,
            )  # fmt: skip
        new = out[0, len(prompt) :].tolist()
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        return self._reply(text, len(prompt), len(new), "length" if len(new) >= length else "stop")

    def _choose(self, request: Request) -> Reply:
        """Log-probability of each choice as the answer: of its tokens, one after the other."""
        import torch

        prompt = self._prompt(request)
        logprobs: dict[str, float] = {}
        for choice in request.choices:
            answer = self._tokenizer(choice, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([prompt + answer], device=self._model.device)
            with torch.inference_mode():
                logits = self._model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            logprobs[choice] = float(logits.gather(1, ids[0, len(prompt) :, None]).sum())
        best = max(logprobs, key=lambda c: logprobs[c])
        reply = self._reply(best, len(prompt), 1, "stop")
        tops = [{"token": c, "logprob": p} for c, p in logprobs.items()]
        reply["choices"][0]["logprobs"] = {"content": [{"token": best, "top_logprobs": tops}]}
        return reply

    def _reply(self, text: str, tokens_in: int, tokens_out: int, reason: str) -> Reply:
        return {
            "object": "chat.completion", "model": self._path,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out},
        }  # fmt: skip


def name_of(options: LLMOptions) -> str:
    """The model's name in ledgers; of a folder with what tells its files from another version's, sizes and times."""
    path = str(options.model).removeprefix(LOCAL)
    folder = Path(path)
    if not folder.is_dir():
        return f"{LOCAL}{path}"
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir()) if f.is_file()]
    return f"{LOCAL}{folder.name} {sha256(repr(stats).encode())[:16]}"


def _load(path: str) -> tuple[Any, Any]:
    """Model and tokenizer. UsageError where transformers is missing or there is no such model."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as e:
        raise UsageError(
            "to run a model here install transformers: pip install 'openwork[hf]' (or: pip install transformers)."
        ) from e
    looks_like_folder = path.startswith((".", "/", "~")) or Path(path).exists()
    folder = Path(path).expanduser()
    if looks_like_folder and not (folder / "config.json").is_file():
        raise UsageError(f"{LOCAL}{path}: there is no Hugging Face model in that folder (it has no config.json).")
    logging.disable_progress_bar()
    name = str(folder) if looks_like_folder else path
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype="auto")
    except Exception as e:  # whatever a foreign folder makes of a foreign library
        raise UsageError(f"{LOCAL}{path} cannot be loaded: {' '.join(str(e).split())[:300]}") from e
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # pyright: ignore[reportArgumentType]
    return model.eval(), tokenizer


__all__ = ["HuggingFace", "name_of"]
