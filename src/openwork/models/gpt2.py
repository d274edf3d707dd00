"""Reads a model with GPT-2's names into our Transformer: Hugging Face's GPT2LMHeadModel, or one in the way of nanoGPT.

    wte.weight [V, D]   wpe.weight [n_ctx, D]   ln_f.weight, .bias [D]   lm_head.weight [V, D], without it wte's
    h.i.ln_1, h.i.ln_2 .weight, .bias [D]       h.i.attn.c_attn [D, 3D]   h.i.attn.c_proj [D, D]
    h.i.mlp.c_fc [D, F]   h.i.mlp.c_proj [F, D]   all with or without "transformer." before

These matrices are [in, out] as Hugging Face has them, or all [out, in] as nn.Linear does; c_attn's shape tells which.
Missing biases are zeros. What was read is run beside what was given.

Knows names and shapes of that format. Does not need the library transformers, nor what the model is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from openwork.errors import RunError, UsageError, several
from openwork.models.transformer import Transformer, TransformerConfig

CLOSE = 1e-4  # logits before and after differ by less, relative to the largest
EPS = 1e-5  # of our LayerNorm
ACTIVATIONS = {
    "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}  # fmt: skip
WIDEST = 8  # tokens of the sequences on which both are compared


def read_gpt2(model: nn.Module | Path | str, heads: int | None = None, activation: str | None = None) -> Transformer:
    """The same function as our Transformer, in evaluation mode; its weights are copies, float32.

    model       token ids [B, T] to logits [B, T, V]; or a folder with `config.json` and `model.safetensors`, as
                Hugging Face's save_pretrained writes it
    heads       attention heads per layer, where no config tells: `model.config.n_head`
    activation  gelu, gelu_tanh or relu, where neither a config nor an nn.GELU or nn.ReLU in the model tells
    UsageError, with all that is in the way, for a model that ours cannot be; RunError where files cannot be read, and
    where the model read computes otherwise than the one given.
    """
    if isinstance(model, nn.Module):
        state, told = dict(model.state_dict()), _told(model)
    else:
        state, told = _read(Path(model))
    tensors = {n.removeprefix("transformer."): t for n, t in state.items()}
    config = _config(tensors, told, heads, activation)
    ours = _filled(Transformer(config), tensors)
    if isinstance(model, nn.Module):
        _check(model, ours)
    return ours


def _read(folder: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, SafetensorError) as e:
        raise RunError(f"the model in {folder} cannot be read from its config.json and model.safetensors: {e}") from e


def _told(model: nn.Module) -> dict[str, Any]:
    """What a model says of itself: its config, and an activation among its modules."""
    config = getattr(model, "config", None)
    names = ("n_head", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
             "scale_attn_by_inverse_layer_idx", "add_cross_attention")  # fmt: skip
    out = {n: getattr(config, n) for n in names if hasattr(config, n)}
    for m in model.modules():
        if isinstance(m, nn.GELU):
            out.setdefault("activation_function", "gelu" if m.approximate == "none" else "gelu_new")
        elif isinstance(m, nn.ReLU):
            out.setdefault("activation_function", "relu")
        elif isinstance(m, nn.LayerNorm):
            out.setdefault("layer_norm_epsilon", m.eps)
    return out


def _config(
    tensors: Mapping[str, Tensor], told: Mapping[str, Any], heads: int | None, activation: str | None
) -> TransformerConfig:
    needed = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "ln_f.weight")
    missing = [n for n in needed if n not in tensors]
    if missing:
        raise UsageError(
            f"these weights are not under GPT-2's names: there is no {', '.join(missing)}. Rename them, or let the "
            "module declare a graph() of its own, see docs/own_model.md."
        )
    problems = []
    n_head = heads or told.get("n_head")
    if not n_head:
        problems.append("nothing tells how many heads a layer has; say heads=.")
    bend = activation or told.get("activation_function")
    if bend is None:
        problems.append("nothing tells the activation of its MLPs; say activation=, gelu, gelu_tanh or relu.")
    elif bend not in {*ACTIVATIONS, *ACTIVATIONS.values()}:
        problems.append(f"its activation is {bend}; there is: {', '.join(sorted({*ACTIVATIONS}))}.")
    eps = told.get("layer_norm_epsilon", EPS)
    if eps != EPS:
        problems.append(f"its norms add {eps:g} to the variance, ours {EPS:g}.")
    if not told.get("scale_attn_weights", True) or told.get("scale_attn_by_inverse_layer_idx", False):
        problems.append("its attention is not divided by the root of a head's width alone.")
    if told.get("add_cross_attention", False):
        problems.append("it attends to another model.")
    vocab, d = tensors["wte.weight"].shape
    if n_head and d % n_head:
        problems.append(f"{n_head} heads do not share {d} channels out evenly.")
    if problems:
        raise several("this model cannot be read", problems)
    assert n_head is not None and bend is not None
    return TransformerConfig(
        vocab=vocab,
        n_layer=1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("h.")),
        d_model=d,
        d_head=d // n_head,
        d_mlp=tensors["h.0.mlp.c_fc.weight"].shape[0 if _is_linear(tensors) else 1],
        n_ctx=len(tensors["wpe.weight"]),
        activation=ACTIVATIONS.get(bend, bend),  # type: ignore[arg-type]
        outputs=0 if len(_unembedding(tensors)) == vocab else len(_unembedding(tensors)),
        bigram=False,
        norm="layer",
        unembed_bias="lm_head.bias" in tensors,
    )


def _is_linear(tensors: Mapping[str, Tensor]) -> bool:
    """Whether matrices are [out, in]."""
    out, inside = tensors["h.0.attn.c_attn.weight"].shape
    return out == 3 * inside


def _unembedding(tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors.get("lm_head.weight", tensors["wte.weight"])


def _filled(ours: Transformer, tensors: Mapping[str, Tensor]) -> Transformer:
    """Our model with such weights; UsageError with every one that is missing, too many or of another shape."""
    left, turned, problems = dict(tensors), not _is_linear(tensors), []
    d = ours.config.d_model
    state = ours.state_dict()

    def take(name: str, matrix: bool = False) -> Tensor | None:
        t = left.pop(name, None)
        return None if t is None else (t.T if matrix and turned else t).float()

    for i in range(ours.config.n_layer):
        for end in ("weight", "bias"):
            t = take(f"h.{i}.attn.c_attn.{end}", end == "weight")
            if t is not None:
                left |= {f"h.{i}.attn.to_{p}.{end}": part for p, part in zip("qkv", t.split(d), strict=True)}
            for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
                if (t := take(f"h.{i}.{name}.{end}", end == "weight")) is not None:
                    left[f"h.{i}.{name}.{end}"] = t
    left.setdefault("lm_head.weight", tensors["wte.weight"])
    for name, want in state.items():
        theirs = _theirs(name)
        t = left.pop(theirs, None)
        if t is None and name.endswith("bias"):
            t = torch.zeros_like(want)
        if t is None:
            problems.append(f"{theirs} is missing.")
        elif t.shape != want.shape:
            problems.append(f"{theirs} gives {tuple(t.shape)} where {tuple(want.shape)} is expected.")
        else:
            state[name] = t.float()
    problems += [f"{n} belongs to no part of the model." for n in sorted(left) if not n.endswith(BUFFERS)]
    if problems:
        raise several("these weights are not those of a GPT-2", problems)
    ours.load_state_dict(state)
    return ours.eval()


BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # masks, not weights
ENDS = {
    "embed": "wte", "positions": "wpe", "norm": "ln_f", "unembed": "lm_head",
    "attn.norm": "ln_1", "mlp.norm": "ln_2", "attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj", "attn.to_q": "attn.to_q", "attn.to_k": "attn.to_k", "attn.to_v": "attn.to_v",
}  # fmt: skip


def _theirs(name: str) -> str:
    """The GPT-2 name of a tensor of ours, its c_attn taken apart."""
    path, _, end = name.rpartition(".")
    if not path.startswith("blocks."):
        return f"{ENDS[path]}.{end}"
    _, i, part = path.split(".", 2)
    return f"h.{i}.{ENDS[part]}.{end}"


def _check(given: nn.Module, ours: Transformer) -> None:
    """RunError where the logits at the last of some tokens differ."""
    n = min(WIDEST, ours.config.n_ctx)
    tokens = torch.randint(ours.config.vocab, (4, n), generator=torch.Generator().manual_seed(0))
    training = [m for m in given.modules() if m.training]
    with torch.no_grad():
        out = given.eval()(tokens)
        got = ours(tokens)[:, -1]
    for m in training:
        m.training = True
    out = getattr(out, "logits", out)
    wanted = (out[0] if isinstance(out, tuple | list) else out)[:, -1].float()
    off = float((got - wanted).abs().max()) if got.shape == wanted.shape else float("inf")
    if off > CLOSE * max(1.0, float(wanted.abs().max())):
        raise RunError(f"the model that was read computes otherwise than the one given (off by {off:.2g}).")


__all__ = ["read_gpt2"]
