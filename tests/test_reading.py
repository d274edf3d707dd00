"""Plain torch models read as ours: the same function, or a refusal that says all that is in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from openwork.circuit import Circuit
from openwork.errors import RunError, UsageError
from openwork.explain.accounts import accountant
from openwork.explain.programs.program import CURVES
from openwork.models import CNN, MLP, Transformer, read_gpt2, read_sequential
from openwork.patching import support, zero_reference
from openwork.training import Dense, TrainSettings, train
from test_docs import ROOT

Net = TypeVar("Net", bound=nn.Module)


def settled(net: Net, seed: int = 0) -> Net:
    """Weights and running statistics drawn at random, so that a batch norm is not the identity."""
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(generator=g)
            m.running_var.uniform_(0.5, 2.0, generator=g)
        for p in m.parameters(recurse=False):
            with torch.no_grad():
                p.normal_(0.0, 0.4, generator=g)
    return net


PERCEPTRONS = {
    "plain": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
    "two hidden layers, silu": lambda: nn.Sequential(
        nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)
    ),
    "nested, no bias, batch norm, dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(inplace=True)),
        nn.Dropout(0.5), nn.Linear(4, 3),
    ),
    "no hidden layer": lambda: nn.Sequential(nn.Linear(5, 3)),
    "double precision": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double(),
}  # fmt: skip


@pytest.mark.parametrize("make", PERCEPTRONS.values(), ids=PERCEPTRONS)
def test_a_perceptron_that_is_read_is_the_same_function(make) -> None:  # type: ignore[no-untyped-def]
    net = settled(make())
    net.train()
    ours = read_sequential(net)
    assert isinstance(ours, MLP) and not ours.training and net.training
    x = torch.randn(32, 5, dtype=next(net.parameters()).dtype)
    torch.testing.assert_close(ours(x.float()), net.eval()(x).float(), atol=1e-5, rtol=1e-4)


def test_a_single_output_becomes_no_and_yes() -> None:
    net = settled(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)))
    x = torch.randn(32, 5)
    logits = read_sequential(net)(x)
    assert bool((logits[:, 0] == 0).all())
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(net(x))[:, 0])


@pytest.mark.parametrize("hidden", [True, False])
def test_a_convolutional_network_that_is_read_is_the_same_function(hidden: bool) -> None:
    end = [nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 3)] if hidden else [nn.Linear(24, 3)]
    net = settled(nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(),
        nn.Conv2d(4, 6, 2, stride=1, bias=False), nn.ReLU(), nn.Flatten(), *end,
    ))  # fmt: skip
    ours = read_sequential(net, image=(2, 8, 9))  # type: ignore[arg-type]
    assert isinstance(ours, CNN)
    x = torch.randn(8, 2, 8, 9)
    torch.testing.assert_close(ours(x), net.eval()(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("net", "image", "said"),
    [
        (nn.Linear(3, 2), None, "a Linear was given; expected an nn.Sequential"),
        (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)), None, "layer 1, GELU, has no place there"),
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), None, "with no activation between"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU()), None, "an activation follows its last layer"),
        (nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1)), None, "losses are taken of logits, so leave it out"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(5, 3)), None, "its layers do not fit each other"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)), None, "differ"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), None, "image=(channels"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)), (1, 8, 8), "padd"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(70, 3)), (1, 8, 8), "leave 72 numbers"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(6, 3)), (1, 8, 8), "a Flatten is expected before it"),
        (nn.Sequential(nn.Conv2d(1, 2, (3, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(84, 3)), (1, 8, 8), "not square"),
        (nn.Sequential(), None, "its last layer is no Linear"),
    ],
)
def test_what_ours_cannot_be_is_refused_in_one_problem(
    net: nn.Sequential, image: tuple[int, int, int] | None, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_sequential(net, image)
    assert said in str(refused.value)
    assert "problems" not in str(refused.value), "one fault, one sentence"
    assert "docs/own_model.md" in str(refused.value)


def test_a_network_that_computes_otherwise_than_its_layers_say_is_seen_through() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    net[0].register_forward_hook(lambda _m, _a, out: torch.mul(out, 2))
    with pytest.raises(RunError, match="computes otherwise"):
        read_sequential(net)


# -- GPT-2 -----------------------------------------------------------------------------------------------------------


def gpt(heads: int = 4) -> nn.Module:
    """The transformer of examples/own_gpt.py with weights drawn at random."""
    space: dict[str, type[nn.Module]] = {"__name__": "own_gpt"}  # type: ignore[dict-item]
    exec((ROOT / "examples" / "own_gpt.py").read_text(), space)
    return settled(space["GPT"](vocab=13, context=10, d=16, heads=heads, layers=2))


def test_a_transformer_with_gpt2s_names_is_the_same_function() -> None:
    net = gpt()
    ours = read_gpt2(net, heads=4)
    assert isinstance(ours, Transformer)
    assert (ours.config.activation, ours.config.d_head, ours.config.norm) == ("gelu", 4, "layer")
    tokens = torch.randint(13, (6, 10))
    torch.testing.assert_close(ours(tokens), net(tokens), atol=1e-4, rtol=1e-4)
    at = torch.tensor([3, 9, 0, 5, 5, 1])
    torch.testing.assert_close(ours(tokens, at), net(tokens)[torch.arange(6), at], atol=1e-4, rtol=1e-4)
    with pytest.raises(RunError, match="computes otherwise"):
        read_gpt2(net, heads=2)
    with pytest.raises(UsageError, match="say heads="):
        read_gpt2(net)


def folder_of(net: nn.Module, at: Path, **config: object) -> Path:
    """A folder as Hugging Face writes it: matrices [in, out], the unembedding tied and left out."""
    state = {n: t.detach() for n, t in net.state_dict().items() if n != "lm_head.weight"}
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    save_file(
        {f"transformer.{n}": (t.T if n.endswith(turned) else t).contiguous() for n, t in state.items()},
        at / "model.safetensors",
    )
    told = {"n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, **config}
    (at / "config.json").write_text(json.dumps(told))
    return at


def test_a_folder_of_hugging_face_is_read(tmp_path: Path) -> None:
    net = gpt()
    net.lm_head.weight = net.wte.weight  # type: ignore[union-attr]
    for block in net.h:  # type: ignore[union-attr]
        block.mlp["act"] = nn.GELU(approximate="tanh")  # type: ignore[index]
    ours = read_gpt2(folder_of(net, tmp_path))
    tokens = torch.randint(13, (6, 10))
    torch.testing.assert_close(ours(tokens), net(tokens), atol=1e-4, rtol=1e-4)
    with pytest.raises(RunError, match="cannot be read"):
        read_gpt2(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"activation_function": "silu"}, "its activation is silu"),
        ({"layer_norm_epsilon": 1e-6}, "its norms add 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "root of a head's width alone"),
        ({"n_head": 5}, "5 heads do not share 16 channels"),
    ],
)
def test_what_a_gpt2_of_ours_cannot_be_is_refused(config: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_gpt2(folder_of(gpt(), tmp_path, **config))


def test_weights_under_other_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"not under GPT-2's names: there is no wte\.weight"):
        read_gpt2(nn.Linear(2, 2))
    net = gpt()
    net.more = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"more\.bias belongs to no part"):
        read_gpt2(net, heads=4)


def test_the_account_of_a_transformer_with_gelu_by_tanh_adds_up() -> None:
    ours = read_gpt2(gpt(), heads=4, activation="gelu")
    tanh = Transformer(ours.config.model_copy(update={"activation": "gelu_tanh"}))
    tanh.load_state_dict(ours.state_dict())
    tanh.eval()
    circuit = Circuit.whole(tanh.graph(), support(tanh))
    tokens, at = torch.randint(13, (3, 6)), torch.tensor([5, 2, 4])
    account = accountant(tanh, circuit, zero_reference(tanh))((tokens, at))
    torch.testing.assert_close(account.logits.float(), tanh(tokens, at), atol=1e-4, rtol=1e-4)


def test_the_curve_of_programs_is_torchs() -> None:
    x = np.linspace(-6, 6, 101)
    wanted = F.gelu(torch.from_numpy(x), approximate="tanh").numpy()
    np.testing.assert_allclose(CURVES["gelu_tanh"](x), wanted, atol=1e-12)


# -- training --------------------------------------------------------------------------------------------------------


def test_training_refuses_a_module_that_could_not_be_stored(tmp_path: Path) -> None:
    class Nothing:
        def batch(self, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
            raise AssertionError("nothing is trained")

        def held_out(self, split: str) -> list[tuple[tuple[Tensor, ...], Tensor]]:
            return []

    with pytest.raises(UsageError, match="a Linear has no config"):
        train(nn.Linear(2, 2), Nothing(), (Dense(),), TrainSettings.model_validate({"steps": 1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
