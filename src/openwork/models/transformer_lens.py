"""Reads a model in the naming of TransformerLens into our Transformer: weights as safetensors, its shape as JSON.

Norms keep their weights (nothing is folded) and nothing is centred, so the logits are those of the model as trained.
Accepted are pre-norm decoders with learned positions, LayerNorm or RMSNorm, GELU or ReLU: the family of GPT-2. The
naming is that of TransformerLens' `HookedTransformer` (github.com/TransformerLensOrg/TransformerLens), H heads of d
channels, D residual channels:

    embed.W_E [V, D]   pos_embed.W_pos [n_ctx, D]   unembed.W_U [D, V]   unembed.b_U [V]   ln_final.w, ln_final.b [D]
    blocks.i.attn.W_Q, W_K, W_V [H, D, d]   b_Q, b_K, b_V [H, d]   W_O [H, d, D]   b_O [D]
    blocks.i.mlp.W_in [D, F]   b_in [F]   W_out [F, D]   b_out [D]   blocks.i.ln1, blocks.i.ln2 .w, .b [D]

Knows names and shapes of that format. Does not need that library, nor what the model is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openwork.errors import RunError, UsageError, several
from openwork.models.transformer import Transformer, TransformerConfig

NORMS: dict[str, dict[str, Any]] = {  # its word -> our settings; "Pre" has no weights of its own
    "LN": {"norm": "layer"},
    "LNPre": {"norm": "layer", "norm_gain": False},
    "RMS": {"norm": "rms"},
    "RMSPre": {"norm": "rms", "norm_gain": False},
    "none": {"norm": False},
}
ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
BUFFERS = ("attn.mask", "attn.IGNORE")  # not weights


def read_transformer_lens(weights: Path, config: Path | None = None) -> Transformer:
    """The model whose weights lie in a safetensors file, or in the folder that holds `model.safetensors`.

    config  JSON with n_layers, d_model, n_heads, d_head, d_mlp, n_ctx, d_vocab, act_fn and normalization_type, flat or
            partly under "arch"; by default the file beside the weights with the same name, or `config.json`
    RunError where a file cannot be read, UsageError where it describes a model that ours cannot be.
    """
    weights = Path(weights)
    if weights.is_dir():
        weights, config = weights / "model.safetensors", config or weights / "config.json"
    config = Path(config) if config is not None else weights.with_suffix(".json")
    try:
        told = json.loads(config.read_text(encoding="utf-8"))
        tensors = load_file(weights)
    except (OSError, ValueError, SafetensorError) as e:
        raise RunError(f"the model in {weights} with the config {config} cannot be read: {e}") from e
    return from_transformer_lens(tensors, told)


def from_transformer_lens(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Transformer:
    """The model of such tensors and such a config (see `read_transformer_lens`); it computes in float32."""
    c = _config(config)
    model = Transformer(c)
    state, problems = model.state_dict(), []
    given = {n: t for n, t in tensors.items() if not n.endswith(BUFFERS)}
    for name, want in state.items():
        source, shape = _source(name, c)
        if source not in given:
            problems.append(f"{source} is missing")
            continue
        t = shape(given.pop(source).float())
        if t.shape != want.shape:
            problems.append(f"{source} gives {tuple(t.shape)} where the config asks for {tuple(want.shape)}")
        state[name] = t
    problems += [f"{n} belongs to no part of the model" for n in sorted(given)]
    if problems:
        raise several("these weights do not fit their config", problems)
    model.load_state_dict(state)
    return model.eval()


def _config(told: Mapping[str, Any]) -> TransformerConfig:
    flat = {**told, **told.get("arch", {})}
    missing = [k for k in ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab", "act_fn") if k not in flat]
    norm = flat.get("normalization_type", flat.get("normalization", "none")) or "none"
    if missing:
        raise UsageError(f"the config of the model does not say {', '.join(missing)}.")
    refusals = []
    if flat["n_heads"] * flat["d_head"] != flat["d_model"]:
        refusals.append(f"{flat['n_heads']} heads of {flat['d_head']} do not make d_model {flat['d_model']}")
    if flat["act_fn"] not in ACTIVATIONS:
        refusals.append(f"act_fn is {flat['act_fn']}; there is: {', '.join(ACTIVATIONS)}")
    if norm not in NORMS:
        refusals.append(f"normalization_type is {norm}; there is: {', '.join(NORMS)}")
    if flat.get("positional_embedding_type", "standard") != "standard":
        refusals.append(f"positional_embedding_type is {flat['positional_embedding_type']}; there is: standard")
    refusals += [
        f"{k} is true, which our Transformer cannot be"
        for k in ("attn_only", "parallel_attn_mlp", "gated_mlp", "final_rms")
        if flat.get(k)
    ]
    if refusals:
        raise several("this model cannot be read", refusals)
    outputs = flat.get("d_vocab_out", -1)
    return TransformerConfig(
        vocab=flat["d_vocab"],
        n_layer=flat["n_layers"],
        d_model=flat["d_model"],
        d_head=flat["d_head"],
        d_mlp=flat.get("d_mlp") or 0,
        n_ctx=flat["n_ctx"],
        activation=ACTIVATIONS[flat["act_fn"]],
        outputs=outputs if outputs > 0 and outputs != flat["d_vocab"] else 0,
        bigram=False,
        unembed_bias=True,
        **NORMS[norm],
    )


def _source(name: str, c: TransformerConfig) -> tuple[str, Any]:
    """Where a tensor of ours lies in theirs, and what makes ours of it."""
    outside = {
        "embed.weight": ("embed.W_E", _same),
        "positions.weight": ("pos_embed.W_pos", _same),
        "norm.weight": ("ln_final.w", _same),
        "norm.bias": ("ln_final.b", _same),
        "unembed.weight": ("unembed.W_U", _turned),
        "unembed.bias": ("unembed.b_U", _same),
    }
    if name in outside:
        return outside[name]
    _, i, part, *rest = name.split(".")
    kind = rest[-1]  # weight or bias
    if rest[0] == "norm":
        return f"blocks.{i}.{'ln1' if part == 'attn' else 'ln2'}.{'w' if kind == 'weight' else 'b'}", _same
    letter = {"weight": "W", "bias": "b"}[kind]
    what = {"to_q": "Q", "to_k": "K", "to_v": "V", "out": "O", "up": "in", "down": "out"}[rest[0]]
    if part == "mlp":
        return f"blocks.{i}.mlp.{letter}_{what}", _turned if kind == "weight" else _same
    make = _same if kind == "bias" else _output_of_heads if what == "O" else _input_of_heads
    return f"blocks.{i}.attn.{letter}_{what}", torch.flatten if kind == "bias" and what != "O" else make


def _same(t: Tensor) -> Tensor:
    return t


def _turned(t: Tensor) -> Tensor:
    return t.T.contiguous()


def _input_of_heads(t: Tensor) -> Tensor:
    """[H, D, d] to [H d, D]."""
    return t.transpose(1, 2).flatten(0, 1).contiguous()


def _output_of_heads(t: Tensor) -> Tensor:
    """[H, d, D] to [D, H d]."""
    return t.flatten(0, 1).T.contiguous()


__all__ = ["from_transformer_lens", "read_transformer_lens"]
