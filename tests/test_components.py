"""Heads and MLPs as nodes: the view computes what the model does, its books balance, its edges are the field's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench_files import BENCH, NO_BENCH, bench_model, bench_split
from openwork import patching
from openwork.circuit import Circuit, connected
from openwork.discover import find, trim
from openwork.errors import RunError, UsageError
from openwork.models import TransformerConfig, build
from openwork.models.components import Components, at_granularity
from openwork.models.transformer import Transformer
from openwork.models.transformer_lens import from_transformer_lens, read_transformer_lens
from openwork.patched_run import PatchedRun
from openwork.patching import patched, record, run
from openwork.tasks.task import Split
from openwork.verify import VERIFIERS, Question
from subject_models import VARIANTS, Inputs, hooks_on, inputs_of, make

VIEWED = [n for n, c in VARIANTS.items() if n.startswith("transformer") and c.abstopk == 1]  # type: ignore[attr-defined]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def view(name: str) -> tuple[Components, Inputs, Inputs]:
    """A view of a small model, inputs, and others that are asked at the same positions."""
    model = make(name)
    assert isinstance(model, Transformer)
    inputs = inputs_of(model)[-1]
    return Components(model), inputs, (inputs_of(model, seed=7)[-1][0], inputs[1])


def test_there_is_something_to_view() -> None:
    assert len(VIEWED) >= 8


@pytest.mark.parametrize(("layers", "heads", "edges"), [(4, 4, 479), (12, 12, 32_491), (1, 2, 6 + 3 + 4)])
def test_it_counts_edges_as_the_field_does(layers: int, heads: int, edges: int) -> None:
    config = TransformerConfig(n_layer=layers, d_model=heads * 2, d_head=2, d_mlp=2, vocab=3, n_ctx=2, bigram=False)
    graph = Components(Transformer(config)).graph()
    whole = Circuit.whole(graph, {e.name: torch.ones(e.shape) for e in graph.links})
    assert whole.counts()["edges"] == edges
    assert sum(s.size for s in graph.sites if "." not in s.name) == 2 + layers * (heads + 1)


@pytest.mark.parametrize("name", VIEWED)
@torch.no_grad()
def test_it_computes_what_the_model_computes(name: str) -> None:
    components = view(name)[0]
    for inputs in inputs_of(components.model):
        torch.testing.assert_close(components(*inputs), components.model(*inputs), **CLOSE)


@pytest.mark.parametrize("name", VIEWED)
@torch.no_grad()
def test_whole_is_the_model_and_empty_is_the_other_input(name: str) -> None:
    components, inputs, other = view(name)
    graph, reference = patching.graph_of(components), record(components, other)
    plain, there = components.model(*inputs), components.model(*other)
    whole = Circuit.whole(graph, patching.support(components))
    torch.testing.assert_close(run(components, inputs, whole, reference), plain, **CLOSE)
    torch.testing.assert_close(run(components, inputs, Circuit.empty(graph), reference), there, **CLOSE)
    for value, expected in ((1.0, plain), (0.0, there)):
        with patched(components, reference, edges={e.name: torch.full(e.shape, value) for e in graph.links}):
            torch.testing.assert_close(components(*inputs), expected, **CLOSE)
    with patched(
        components, reference, nodes={s.name: torch.zeros(s.size) for s in graph.sites if graph.out_of(s.name)}
    ):
        torch.testing.assert_close(components(*inputs), there, **CLOSE)
    assert hooks_on(components) == 0


@torch.no_grad()
def test_with_zeros_only_the_bias_of_attention_outputs_is_left() -> None:
    components, inputs, _ = view("transformer, LayerNorm, unembedding bias")
    model = components.model
    reference = patching.zero_reference(components)
    edges = {e.name: torch.zeros(e.shape) for e in components.graph().links}
    with patched(components, reference, edges=edges):
        out = components(*inputs)
    stream = sum(b.attn.out.bias for b in model.blocks)  # type: ignore[union-attr, operator, misc]
    torch.testing.assert_close(out, model.unembed(model.norm(stream)).expand_as(out), **CLOSE)


@torch.no_grad()
def test_one_edge_ablated_is_what_it_says() -> None:
    """By hand: head 1 of layer 1 reads, for its keys alone, a stream in which head 0 of layer 0 sent something else."""
    components, inputs, other = view("transformer, LayerNorm, unembedding bias")
    model = components.model
    here, there = record(components, inputs), record(components, other)
    mask = torch.ones(2, 2)
    mask[1, 0] = 0
    with patched(components, there, edges={"a0>a1.k": mask}):
        got = components(*inputs)

    first, second = model.blocks
    x = here["input"][..., 0, :] + here["a0"].sum(-2) + first.attn.out.bias + here["m0"][..., 0, :]  # type: ignore[union-attr, operator]
    changed = x + there["a0"][..., 0, :] - here["a0"][..., 0, :]
    attn = second.attn
    q, k, v = (to(attn.norm(x)) for to in (attn.to_q, attn.to_k, attn.to_v))  # type: ignore[union-attr, operator]
    k = torch.cat([k[..., :4], attn.to_k(attn.norm(changed))[..., 4:]], -1)  # type: ignore[union-attr, operator]
    x = x + attn.out(attn.attend(q, k, v))  # type: ignore[union-attr, operator]
    x = x + second.mlp(x)  # type: ignore[operator]
    expected = model.unembed(model.norm(x))[torch.arange(len(x)), inputs[1]]
    torch.testing.assert_close(got, expected, **CLOSE)


@torch.no_grad()
def test_dropping_a_node_is_ablating_every_edge_out_of_it() -> None:
    components, inputs, other = view("transformer, sink")
    graph, reference = components.graph(), record(components, other)
    for s in graph.sites:
        if graph.out_of(s.name):
            keep = torch.ones(s.size)
            keep[-1] = 0
            with patched(components, reference, nodes={s.name: keep}):
                by_nodes = components(*inputs)
            with patched(components, reference, edges={e.name: keep.expand(e.shape) for e in graph.out_of(s.name)}):
                torch.testing.assert_close(components(*inputs), by_nodes, **CLOSE)
            assert not torch.allclose(by_nodes, components(*inputs), atol=1e-4), s.name


def test_a_head_that_reads_nothing_is_not_on_a_path() -> None:
    components, _, _ = view("transformer, no bigram")
    graph = components.graph()
    edges = {e.name: torch.ones(e.shape, dtype=torch.bool) for e in graph.links}
    for e in graph.links:
        if e.dst.startswith("a1."):
            edges[e.name][0] = False
    kept = connected(graph, edges)
    assert kept["a1"].tolist() == [False, True]
    assert kept["a1.q"].tolist() == kept["a1.v"].tolist() == [False, True]
    circuit = Circuit.from_edges(graph, edges, patching.support(components))
    assert not circuit.edges["a1>m1"][0, 0]
    assert circuit.edges["a1>m1"][0, 1]


def test_a_circuit_of_heads_is_found_trimmed_and_verified() -> None:
    """All stages take the view as they take any model; what they measure is what a patched run measures."""
    view_ = view("transformer, LayerNorm, unembedding bias")[0]
    tokens = torch.randint(11, (80, 6), generator=torch.Generator().manual_seed(0))
    at = torch.randint(2, 6, (80,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        view_.model.unembed.weight.mul_(20)
        difference = view_(tokens, at)[:, 0] - view_(tokens, at)[:, 1]
        bias = view_.model.unembed.bias
        bias[0] -= difference.median()  # so that either of two answers is right as often
        answer = (view_(tokens, at)[:, 0] <= view_(tokens, at)[:, 1]).long()
    pair = torch.arange(80) ^ 1
    split = Split("discover", (tokens, at), answer, (1 - answer)[:, None], pair, tuple(str(i) for i in range(80)))
    discover, held_out = split.halves()
    mean = patching.mean_reference(view_, [(tokens,)])
    found = find(view_, mean, discover, "attribution", target=0.3)
    assert found.circuit is not None
    whole = Circuit.whole(view_.graph(), patching.support(view_))
    assert 0 < len(found.circuit) < len(whole)
    trimmed = trim(view_, found.circuit, mean, discover, 0.3)
    assert trimmed.loss <= 0.3
    assert trimmed.circuit - found.circuit == Circuit.empty(view_.graph())
    asked = Question(view_, trimmed.circuit, mean, held_out, None, 0.3, n_null=19)
    evidence = {name: check(asked) for name, check in VERIFIERS.items()}
    assert evidence["sufficient"].value == pytest.approx(
        PatchedRun(view_, mean).loss(held_out, trimmed.circuit), abs=1e-5
    )
    assert all(e.n == len(held_out) for name, e in evidence.items() if name in ("sufficient", "necessary"))
    with pytest.raises(UsageError, match="one value per input"):
        Question(view_, trimmed.circuit, record(view_, (tokens, at)), held_out, None, 0.3)
    assert hooks_on(view_) == 0


def test_granularity_is_refused_where_it_makes_no_sense() -> None:
    mlp, top = make("mlp"), make("transformer, abstopk")
    assert at_granularity(mlp, "weights") is mlp
    with pytest.raises(UsageError, match="MLP has no heads"):
        at_granularity(mlp, "components")
    with pytest.raises(UsageError, match="AbsTopK"):
        at_granularity(top, "components")
    with pytest.raises(UsageError, match="component"):
        at_granularity(mlp, "component")  # type: ignore[arg-type]
    components = view("transformer")[0]
    assert at_granularity(components, "components") is components


# -- reading --------------------------------------------------------------------------------------------------------


def foreign(model: Transformer) -> dict[str, Tensor]:
    """Our weights in the naming of TransformerLens, written out here by its documented shapes."""
    c, out = model.config, {}
    heads, d = c.d_model // c.d_head, c.d_head
    for i, b in enumerate(model.blocks):
        attn, mlp = b.attn, b.mlp
        for letter, to in (("Q", attn.to_q), ("K", attn.to_k), ("V", attn.to_v)):  # type: ignore[union-attr]
            rows = to.weight.view(heads, d, c.d_model)  # type: ignore[union-attr, operator]
            out[f"blocks.{i}.attn.W_{letter}"] = torch.stack([h.T for h in rows])
            out[f"blocks.{i}.attn.b_{letter}"] = to.bias.view(heads, d)  # type: ignore[union-attr, operator]
        columns = attn.out.weight.T.reshape(heads, d, c.d_model)  # type: ignore[union-attr, operator]
        out |= {f"blocks.{i}.attn.W_O": columns, f"blocks.{i}.attn.b_O": attn.out.bias}  # type: ignore[union-attr, dict-item]
        for theirs, ours in (("in", mlp.up), ("out", mlp.down)):  # type: ignore[union-attr]
            out[f"blocks.{i}.mlp.W_{theirs}"] = ours.weight.T  # type: ignore[union-attr]
            out[f"blocks.{i}.mlp.b_{theirs}"] = ours.bias  # type: ignore[union-attr, assignment]
        for theirs, norm in (("ln1", attn.norm), ("ln2", mlp.norm)):  # type: ignore[union-attr]
            out |= {f"blocks.{i}.{theirs}.w": norm.weight, f"blocks.{i}.{theirs}.b": norm.bias}  # type: ignore[union-attr, dict-item]
    out |= {"embed.W_E": model.embed.weight, "pos_embed.W_pos": model.positions.weight}  # type: ignore[union-attr]
    out |= {"unembed.W_U": model.unembed.weight.T, "unembed.b_U": model.unembed.bias}
    out |= {"ln_final.w": model.norm.weight, "ln_final.b": model.norm.bias}  # type: ignore[dict-item]
    return {n: t.detach().contiguous() for n, t in out.items()}


CONFIG = {
    "n_layers": 2, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": 6, "d_vocab": 11, "act_fn": "gelu",
    "normalization_type": "LN",
}  # fmt: skip


@torch.no_grad()
def test_a_model_in_foreign_naming_is_the_same_model(tmp_path: Path) -> None:
    model = make("transformer, LayerNorm, unembedding bias")
    assert isinstance(model, Transformer)
    tensors = foreign(model) | {
        "blocks.0.attn.mask": torch.ones(6, 6).bool(),
        "blocks.1.attn.IGNORE": torch.tensor(0.0),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for inputs in inputs_of(model):
        again = read_transformer_lens(tmp_path)
        assert torch.equal(again(*inputs), model(*inputs))
        assert torch.equal(
            again(*inputs), read_transformer_lens(tmp_path / "model.safetensors", tmp_path / "config.json")(*inputs)
        )


def test_what_does_not_fit_is_refused_with_all_reasons(tmp_path: Path) -> None:
    model = make("transformer, LayerNorm, unembedding bias")
    assert isinstance(model, Transformer)
    tensors = foreign(model)
    del tensors["ln_final.b"]
    tensors |= {"blocks.0.attn.W_G": torch.zeros(1), "embed.W_E": torch.zeros(3, 8)}
    with pytest.raises(UsageError, match="3 problems") as said:
        from_transformer_lens(tensors, CONFIG)
    assert all(n in str(said.value) for n in ("ln_final.b", "W_G", "(3, 8)"))
    with pytest.raises(UsageError, match="n_heads"):
        from_transformer_lens({}, {k: v for k, v in CONFIG.items() if k != "n_heads"})
    with pytest.raises(UsageError, match="3 problems") as said:
        from_transformer_lens({}, CONFIG | {"n_heads": 3, "act_fn": "silu", "positional_embedding_type": "rotary"})
    assert all(n in str(said.value) for n in ("3 heads of 4", "silu", "rotary"))
    with pytest.raises(RunError, match="cannot be read"):
        read_transformer_lens(tmp_path)


def test_a_config_stored_with_norm_true_or_false_means_what_it_meant() -> None:
    for norm, kind in ((True, torch.nn.RMSNorm), (False, torch.nn.Identity), ("layer", torch.nn.LayerNorm)):
        model = build({"kind": "transformer", "n_layer": 1, "vocab": 5, "d_model": 16, "n_ctx": 3, "norm": norm})
        assert type(model.norm) is kind
        assert model.config.norm == norm  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="norm"):
        build({"kind": "transformer", "norm": "batch"})


@pytest.mark.skipif(not BENCH.exists(), reason=NO_BENCH)
@torch.no_grad()
def test_the_benchmark_model_reproduces_its_logit_differences() -> None:
    """Figures stated with the model, made by TransformerLens."""
    model, split = bench_model(), bench_split()
    logits = model(*split.inputs)
    right = torch.cat([split.answer[:64], split.answer[:64]])
    wrong = torch.cat([split.wrong[:64, 0], split.wrong[:64, 0]])
    difference = (logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None]))[:, 0]
    assert difference[:64].mean().item() == pytest.approx(12.569355964660645, abs=1e-4)
    assert difference[64:].mean().item() == pytest.approx(-12.794363021850586, abs=1e-4)
