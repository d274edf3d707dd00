"""A transformer of one's own in plain PyTorch, letters as tokens, and a task from a file of prompts.

`python own_gpt.py` writes the prompts, prompts.jsonl. The module has GPT-2's names, so openwork can read it.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openwork as ow

PROMPTS = Path("prompts.jsonl")
START = "<|endoftext|>"  # stands before every prompt
TEXTS = (START, *"abcdefghijklmnopqrstuvwxyz ([)]=")


class Letters:
    """The tokenizer: `encode` a text, and `token`, the id of a text that is a single token."""

    def encode(self, text: str) -> list[int]:
        begins = text.startswith(START)
        return [0] * begins + [TEXTS.index(c) for c in text.removeprefix(START)]

    def token(self, text: str) -> int:
        if text not in TEXTS:
            raise ow.UsageError(f"{text!r} is no letter that this model knows.")
        return TEXTS.index(text)


class Attention(nn.Module):
    """Causal attention [B, T, D] of some heads."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention and an MLP, each added to the stream."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(d), Attention(d, heads), nn.LayerNorm(d)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "act": nn.GELU(), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    """Token ids [B, T] to logits [B, T, V]."""

    def __init__(self, vocab: int, context: int, d: int, heads: int, layers: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.h = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def calls(seed: int, n: int) -> list[tuple[str, str, str]]:
    """Calls and look-ups such as "total(price", each in both brackets: prompt, what closes it, what does not."""
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        one, two = ("".join(rng.choices(TEXTS[1:27], k=rng.randint(2, 5))) for _ in range(2))
        out += [(f"{one}({two}", ")", "]"), (f"{one}[{two}", "]", ")")]
    return out


def model() -> nn.Module:
    """The trained transformer, read as openwork's; yours would load its weights from a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GPT(len(TEXTS), context=16, d=32, heads=4, layers=1)
    adam, letters = torch.optim.Adam(net.parameters(), lr=0.01), Letters()
    for step in range(200):
        texts = [letters.encode(START + prompt + closing) for prompt, closing, _ in calls(1000 + step, 16)]
        rows = torch.tensor([ids + [0] * (16 - len(ids)) for ids in texts])
        adam.zero_grad()
        F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        adam.step()
    return ow.read_gpt2(net, heads=4)


def brackets() -> ow.Task:
    """Which bracket closes it? The prompts of the file, with the text of every token id."""
    return replace(ow.read_jsonl_task(PROMPTS, Letters()), name="brackets", names=TEXTS)


def write_prompts() -> None:
    """Sixty pairs for each of three splits, one example per line; the two of a pair are each other's counterpart."""
    with PROMPTS.open("w", encoding="utf-8") as file:
        for seed, split in enumerate(("discover", "verify", "explain")):
            for k, (prompt, answer, wrong) in enumerate(calls(seed, 60)):
                row = {"prompt": prompt, "answer": answer, "wrong": wrong, "pair": f"{split} {k // 2}", "split": split}
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write_prompts()
