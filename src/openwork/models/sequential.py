"""Reads a plain nn.Sequential into our MLP or CNN, which every command knows: words, reasons, programs, export.

Accepted are the usual perceptron, Linear and ReLU (or SiLU) in turn, and the usual convolutional network, Conv2d, ReLU
and MaxPool2d in turn, then Flatten and a perceptron. Dropout and Identity compute nothing here and are left out; a
batch norm between a layer and its activation folds into the layer, as it computes in evaluation. A single output is
read as the logit of "yes" against 0, so that there are two outputs, no and yes. What was read is run beside what was
given.

Knows torch's layers. Does not know what the model is for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwork.errors import RunError, UsageError, several
from openwork.models.cnn import CNN, CNNConfig, ConvBlock
from openwork.models.mlp import MLP, MLPConfig

CLOSE = 1e-4  # logits before and after differ by less, relative to the largest
OTHERWISE = "any other module can declare a graph() of its own, see docs/own_model.md"
SILENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ENDS = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
BENDS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu"}


def read_sequential(net: nn.Sequential, image: tuple[int, int, int] | None = None) -> MLP | CNN:
    """The same function as one of our models, in evaluation mode; its weights are copies, float32.

    net    perceptron: features [B, F] to logits [B, V]; convolutional network: images [B, C, H, W] to logits [B, V]
    image  (C, H, W), of a convolutional network alone
    UsageError, with all that is in the way, for a network that ours cannot be; RunError where it computes otherwise.
    """
    if not isinstance(net, nn.Sequential):
        raise UsageError(f"a {type(net).__name__} was given; expected an nn.Sequential; {OTHERWISE}.")
    layers = [m for m in _flat(net) if not isinstance(m, SILENT)]
    problems: list[str] = []
    matrices, bends, pools = _parts(layers, problems)
    convolutions = [m for m in matrices if isinstance(m, nn.Conv2d)]
    if convolutions and image is None:
        problems.append("it has convolutions, so the size of its images is needed: image=(channels, height, width).")
    if not convolutions and image is not None:
        problems.append("image is given, and there is no convolution.")
    problems += [p for m in convolutions for p in _cannot(m)]
    if len(set(bends)) > 1 or (convolutions and "silu" in bends):
        problems.append("its activations differ, or are no ReLU in a convolutional network.")
    if not problems:
        try:
            model = _cnn(matrices, pools, image) if image is not None else _mlp(matrices, bends)
        except (ValueError, RuntimeError) as e:
            problems.append(f"its layers do not fit each other: {str(e).splitlines()[0]}")
    if problems:
        raise several(f"this network cannot be read as ours ({OTHERWISE})", problems)
    _check(net, model, image, matrices[0])  # type: ignore[possibly-undefined]
    return model  # type: ignore[possibly-undefined]


def _flat(net: nn.Sequential) -> list[nn.Module]:
    return [x for m in net for x in (_flat(m) if isinstance(m, nn.Sequential) else [m])]


def _parts(
    layers: Sequence[nn.Module], problems: list[str]
) -> tuple[list[nn.Linear | nn.Conv2d], list[str], list[int]]:
    """The layers with a matrix (batch norms folded in), the activation behind each but the last, the pooling."""
    matrices: list[nn.Linear | nn.Conv2d] = []
    bends: list[str] = []
    pools: list[int] = []
    flattened = False
    for i, m in enumerate(layers):
        name = f"layer {i}, {type(m).__name__},"
        if isinstance(m, nn.Linear | nn.Conv2d):
            if len(bends) != len(matrices):
                problems.append(f"{name} follows another layer with no activation between.")
                bends.append("relu")
            if isinstance(m, nn.Conv2d) and (flattened or any(isinstance(x, nn.Linear) for x in matrices)):
                problems.append(f"{name} is a convolution after a linear layer.")
            if isinstance(m, nn.Linear) and matrices and isinstance(matrices[-1], nn.Conv2d) and not flattened:
                problems.append(f"{name} reads maps; a Flatten is expected before it.")
            matrices.append(m)
            pools.append(1)
        elif isinstance(m, NORMS) and matrices and len(bends) < len(matrices):
            matrices[-1] = _folded(matrices[-1], m)
        elif type(m) in BENDS and len(bends) == len(matrices) - 1:
            bends.append(BENDS[type(m)])
        elif isinstance(m, nn.MaxPool2d) and matrices and len(bends) == len(matrices) and not flattened:
            one = m.kernel_size if isinstance(m.kernel_size, int) else m.kernel_size[0]
            if m.kernel_size not in (one, (one, one)) or m.stride not in (one, (one, one)) or m.padding or m.ceil_mode:
                problems.append(f"{name} is not of plain square windows side by side.")
            pools[-1] *= one
        elif isinstance(m, nn.Flatten) and not flattened:
            flattened = True
        elif isinstance(m, ENDS):
            problems.append(f"{name} makes probabilities; losses are taken of logits, so leave it out.")
        else:
            problems.append(f"{name} has no place there in our MLP or CNN.")
            if len(bends) < len(matrices):
                bends.append("relu")  # one problem is told once
    if not matrices or not isinstance(matrices[-1], nn.Linear):
        problems.append("its last layer is no Linear.")
    elif len(bends) == len(matrices):
        problems.append("an activation follows its last layer; logits are expected to come out as they are.")
    return matrices, bends, pools


def _cannot(m: nn.Conv2d) -> list[str]:
    """What a convolution of ours cannot be."""
    said = []
    if m.padding not in (0, (0, 0), "valid"):
        said.append(f"a Conv2d has padding {m.padding}; ours have none.")
    if m.groups != 1 or m.dilation != (1, 1):
        said.append("a Conv2d has groups or a dilation; ours have none.")
    if len(set(m.kernel_size)) > 1 or len(set(m.stride)) > 1:
        said.append("a Conv2d has a kernel or a stride that is not square; ours are.")
    return said


def _folded(m: nn.Linear | nn.Conv2d, norm: Any) -> nn.Linear | nn.Conv2d:
    """A layer and the batch norm behind it as one layer: y = g (W x + b - mean) / sqrt(var + eps) + shift."""
    if norm.running_mean is None:
        raise UsageError("a batch norm keeps no running mean, so what it computes depends on the batch.")
    scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.detach())
    shift = 0.0 if norm.bias is None else norm.bias.detach()
    new = copy.deepcopy(m)
    rows = scale.view(-1, *[1] * (m.weight.dim() - 1))
    new.weight = nn.Parameter(m.weight.detach() * rows)
    new.bias = nn.Parameter((_bias(m) - norm.running_mean) * scale + shift)
    return new


def _bias(m: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.zeros(m.weight.shape[0]) if m.bias is None else m.bias.detach()


def _two(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer with at least two outputs: a single one is the second, beside a constant 0."""
    if len(weight) > 1:
        return weight, bias
    return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])


def _weights(matrices: Sequence[nn.Linear | nn.Conv2d]) -> list[tuple[Tensor, Tensor]]:
    pairs = [(m.weight.detach().float(), _bias(m).float()) for m in matrices]
    return [*pairs[:-1], _two(*pairs[-1])]


def _filled(model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
    layers: Any = model.layers
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, pairs, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return model.eval()


def _mlp(matrices: Sequence[nn.Linear | nn.Conv2d], bends: Sequence[str]) -> MLP:
    pairs = _weights(matrices)
    config = MLPConfig.model_validate({
        "inputs": pairs[0][0].shape[1], "hidden": [len(b) for _, b in pairs[:-1]], "outputs": len(pairs[-1][1]),
        "activation": bends[0] if bends else "relu",
    })  # fmt: skip
    return _filled(MLP(config), pairs)


def _cnn(matrices: Sequence[nn.Linear | nn.Conv2d], pools: Sequence[int], image: tuple[int, int, int]) -> CNN:
    pairs = _weights(matrices)
    blocks = tuple(
        ConvBlock(channels=m.out_channels, kernel=m.kernel_size[0], stride=m.stride[0], pool=p)
        for m, p in zip(matrices, pools, strict=True)
        if isinstance(m, nn.Conv2d)
    )
    hidden = tuple(len(b) for _, b in pairs[len(blocks) : -1])
    config = CNNConfig.model_validate(
        {"image": image, "blocks": blocks, "hidden": hidden, "outputs": len(pairs[-1][1])}
    )
    height, width = config.maps()[-1][1:]
    first = len(blocks)
    weight, bias = pairs[first]
    left = blocks[-1].channels * height * width
    if weight.shape[1] != left:
        raise ValueError(f"images of {image} leave {left} numbers to the first Linear, which reads {weight.shape[1]}")
    pairs[first] = weight.view(len(weight), -1, height, width), bias  # a linear layer over maps is a kernel as large
    return _filled(CNN(config), pairs)


def _check(net: nn.Sequential, model: nn.Module, image: tuple[int, ...] | None, first: Any) -> None:
    """RunError where the model computes anything else than the network does in evaluation."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((16, *(image or (first.in_features,))), generator=generator)
    training = [m for m in net.modules() if m.training]
    with torch.no_grad():
        given = net.eval()(x.to(next(net.parameters()).dtype)).float()
        ours = model(x)
    for m in training:
        m.training = True
    wanted = given if given.shape[1] > 1 else torch.cat([torch.zeros_like(given), given], 1)
    off = float((ours - wanted).abs().max())
    if off > CLOSE * max(1.0, float(wanted.abs().max())):
        raise RunError(f"the network that was read computes otherwise than the one given (off by {off:.2g}).")


__all__ = ["read_sequential"]
