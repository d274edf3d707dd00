"""Where the model lies that other tools were measured on, and its prompts, for the tests that need them."""

from __future__ import annotations

import json
from typing import Any

import torch

from idx_files import DATA
from openwork.models.transformer import Transformer
from openwork.models.transformer_lens import read_transformer_lens
from openwork.tasks.task import Split

BENCH = DATA / "bench"
NO_BENCH = f"the model and the prompts are not in {BENCH}; OPENWORK_DATA may name the folder that holds bench/"


def bench_model() -> Transformer:
    """4 layers of 4 heads, 128 channels, LayerNorm, 50 tokens, 16 positions."""
    return read_transformer_lens(BENCH / "small.safetensors")


def bench_split() -> Split:
    """64 prompts and, from 64 on, their counterparts; asked at the last of 16 positions."""
    told = read("small_quote_prompts.json")
    tokens = torch.tensor(told["clean"] + told["corrupt"])
    answer, wrong = torch.tensor(told["answer"]), torch.tensor(told["wrong"])
    n = len(answer)
    at = torch.full((2 * n,), tokens.shape[1] - 1)
    pair = torch.cat([torch.arange(n) + n, torch.arange(n)])
    texts = tuple(f"prompt {i}" for i in range(2 * n))
    return Split("discover", (tokens, at), torch.cat([answer, wrong]), torch.cat([wrong, answer])[:, None], pair, texts)


def read(name: str) -> Any:
    """A JSON file of the folder."""
    return json.loads((BENCH / name).read_text(encoding="utf-8"))
